"""Versions of objects far away as text: size, time, and ETag or what stands for it. Knows nothing of stores."""

from __future__ import annotations

from shardfs.model import Version

INSTEAD = "modified:"
"""Begins what stands for the ETag where a server has none: no header of a request can ask for it."""


def version_of(size: int, mtime_ns: int, etag: str | None) -> Version:
    return Version(f"{size:x}-{mtime_ns:x}-{etag or ''}")


def parse_version(version: Version) -> tuple[int, int, str]:
    """Size, time in nanoseconds and ETag (empty: none) of a version."""
    size, mtime_ns, etag = version.split("-", 2)
    return int(size, 16), int(mtime_ns, 16), etag
