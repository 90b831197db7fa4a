"""What is asked of a store far away, one request at a time, whatever asks it (`obstore_objects`, `fsspec_objects`).

Whoever asks says how often, until when, and what the errors mean (`requests`). Knows nothing of shards or caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from shardfs.model import Version
from shardfs.storage.base import Listed

PROBE = ".shardfs-tmp-probe-"
"""Names that begin so were made to find out what a store can do; no listing of ours shows them."""


class Objects(Protocol):
    """One store's objects. Each call is one attempt; errors are those that `requests.understood` knows."""

    ranges: bool
    """Whether it makes sense to ask for parts."""

    def pages(self) -> Iterator[list[Listed]]:
        """All of them, some at a time."""

    def head(self, name: str) -> Listed: ...

    def get(self, name: str, version: Version, part: tuple[int, int] | None) -> memoryview:
        """The bytes of one version, or a part of them (first, behind last), where they lie: a copy would cost more than
        fetching them. StaleShardError, ShortBodyError, RangesIgnoredError."""

    def put(self, name: str, file: BinaryIO, condition: Any, mark: str | None) -> str | None:
        """Store a file's bytes, with a mark that tells this write apart; the ETag, as far as it is told. `condition` is
        `overwrite`, `create` or `{"e_tag": ...}`."""

    def told_mark(self, name: str) -> tuple[str | None, str | None]:
        """The mark that was written with an object, and its ETag."""

    def delete(self, name: str) -> None: ...

    def probe(self) -> object:
        """Something small, which fails: whether there is an answer is what counts."""
