"""The hashes that an index of MosaicML Streaming may have of its files. Knows nothing of indexes or files."""

from __future__ import annotations

import hashlib
import importlib
from typing import Protocol

from shardfs.values import Buffer

HASHES = (
    *("xxh3_64", "xxh3_128", "xxh64", "xxh128", "xxh32", "sha1", "md5", "blake2b", "sha256", "sha512", "sha384"),
    *("blake2s", "sha224", "sha3_256", "sha3_224", "sha3_384", "sha3_512"),
)
"""All that the library can write, the fastest to check first."""


class Hash(Protocol):
    def update(self, data: bytes | Buffer, /) -> None: ...
    def hexdigest(self) -> str: ...


def hasher(name: str) -> Hash | None:
    """A fresh hash of that name; None for an unknown one, and for xxhash's where the package is not installed."""
    if name not in HASHES:
        return None
    if not name.startswith("xxh"):
        return hashlib.new(name, usedforsecurity=False)
    try:
        made: Hash = getattr(importlib.import_module("xxhash"), name)()
    except ImportError:
        return None
    return made
