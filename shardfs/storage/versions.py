"""Versions of objects far away as text: size, time, and ETag or what stands for it. Knows nothing of stores.

A store says the same of an object in its listing and in the headers of an answer, but not in the same words: Azure's
and rclone's listings have ETags without their quotes, and times are in milliseconds there and in seconds here. So a
version has the ETag in quotes, and whole seconds. Where the ETag is a strong one the time is left out: rclone tells of
an object that it has just been given with one time, and a moment later with another.
"""

from __future__ import annotations

from shardfs.model import Version

INSTEAD = "modified:"
"""Begins what stands for the ETag where a server has none: no header of a request can ask for it."""


SECOND = 1_000_000_000


def quoted(etag: str | None) -> str | None:
    """An ETag as versions have it."""
    return etag if not etag or etag.endswith('"') else f'"{etag}"'


def is_strong(etag: str | None) -> bool:
    """Whether an ETag stands for the very bytes (RFC 9110, 8.8.1), and can be a condition."""
    return bool(etag) and not str(etag).startswith(("W/", INSTEAD))


def version_of(size: int, mtime_ns: int, etag: str | None) -> Version:
    return Version(f"{size:x}-{mtime_ns:x}-{etag or ''}")


def parse_version(version: Version) -> tuple[int, int, str]:
    """Size, time in nanoseconds and ETag (empty: none) of a version."""
    size, mtime_ns, etag = version.split("-", 2)
    return int(size, 16), int(mtime_ns, 16), etag
