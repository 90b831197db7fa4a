"""ETags that are the MD5 of what they stand for, as most S3 servers have them: a check of what came over the network.

They need not be (encrypted objects, objects that were put in parts, other servers), and no header says so. So the first
object whose MD5 is its ETag decides that they are, from when on any other is damage; and where one differs before that,
it is fetched once more in two pieces: what damages bytes on the way will not do just the same to both. Knows nothing of
how anything is fetched.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class Etags:
    """What is known of one store's ETags. Thread-safe."""

    def __init__(self) -> None:
        self._are_md5: bool | None = None
        self._lock = threading.Lock()

    def told(self, etag: str) -> str | None:
        """The MD5 that an ETag may be; None where it is none, or the store's are known to be something else."""
        found = _MD5.fullmatch(etag)
        return None if found is None or self._are_md5 is False else found[1]

    def fits(self, etag: str, digest: str, again: Callable[[], str]) -> bool:
        """Whether bytes with this MD5 may be what the ETag stands for. `again` fetches them otherwise, and gives the
        MD5 then; it is called only while nothing is known of the store."""
        told = self.told(etag)
        if told is None:
            return True
        if digest == told:
            self._are_md5 = True
            return True
        if self._are_md5:
            return False
        with self._lock:
            if self._are_md5 is None:
                second = again()
                if second == digest:
                    self._are_md5 = False
                elif second == told:
                    self._are_md5 = True
        return self._are_md5 is False


def md5(data: bytes | memoryview) -> str:
    """As ETags have it: a check of the network, and none of who wrote it."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
