"""A file of records that is only appended to, and read back up to where it was cut off.

A record is a header (magic, length, number, CRC-32 of all the rest) and a payload. Each is written by one `pwrite`,
so the death of the process loses none that was acknowledged; power loss may tear the tail off. Knows nothing of what
the payloads say.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shardfs.errors import StagingError

NEW = ".new"
"""Behind the name of a journal that is still being written to take the place of an older one."""

_MAGIC = b"\xf5sj\n"
_HEADER = struct.Struct("<4sIII")
_NUMBERED = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a journal holds."""

    payloads: list[bytes]
    """All good records from the beginning on, until the first that is not."""
    end: int
    """Bytes they take; what lies behind was torn off, or is damaged."""
    size: int
    """Bytes of the file."""
    damage: str | None
    """None if what lies behind is only the torn last record; else what is wrong: good records follow it."""


def _frame(payload: bytes, number: int) -> bytes:
    crc = zlib.crc32(payload, zlib.crc32(_NUMBERED.pack(len(payload), number)))
    return _HEADER.pack(_MAGIC, len(payload), number, crc) + payload


def _good(data: bytes, at: int) -> tuple[int, int] | None:
    """(number, end) of the record at a position; None if there is no whole and right one."""
    if len(data) - at < _HEADER.size:
        return None
    magic, length, number, crc = _HEADER.unpack_from(data, at)
    start = at + _HEADER.size
    if magic != _MAGIC or len(data) - start < length:
        return None
    payload = data[start : start + length]
    right = zlib.crc32(payload, zlib.crc32(_NUMBERED.pack(length, number))) == crc
    return (number, start + length) if right else None


def scan(path: Path) -> Scanned:
    """Read a journal. OSError."""
    payloads: list[bytes] = []
    end = 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while True:
            header = file.read(_HEADER.size)
            length = _HEADER.unpack(header)[1] if len(header) == _HEADER.size else 0
            record = header + file.read(min(length, size - end))  # a damaged length must not ask for gigabytes
            good = _good(record, 0)
            if good is None or good[0] != len(payloads):
                break
            payloads.append(record[_HEADER.size :])
            end += good[1]
        file.seek(end)
        rest = file.read()
    # Whatever was written later than a record that is wrong shows that this is no torn tail.
    at = rest.find(_MAGIC)
    while at >= 0:
        if _good(rest, at) is not None:
            reason = f"its journal is damaged at byte {end} and goes on at byte {end + at}"
            return Scanned(payloads, end, size, reason)
        at = rest.find(_MAGIC, at + 1)
    return Scanned(payloads, end, size, None)


class Journal:
    """A journal that is written to. Not thread-safe: its owner has a lock."""

    def __init__(self, path: Path, records: int, size: int) -> None:
        self.path = path
        self.records = records
        self.size = size
        """Bytes of good records; whatever lies behind is overwritten."""
        self.untrusted = False
        """True once records may not be on disk although they seem to be: only `rewrite` makes it good."""
        self._descriptor = -1

    @classmethod
    def create(cls, path: Path, payloads: Iterable[bytes]) -> Journal:
        """Write a new journal durably (its directory is the caller's to sync). OSError, and no file is left."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        records = size = 0
        try:
            with open(descriptor, "wb", buffering=1 << 20) as file:
                for payload in payloads:
                    size += file.write(_frame(payload, records))
                    records += 1
                file.flush()
                os.fsync(descriptor)
        except OSError:
            os.unlink(path)
            raise
        return cls(path, records, size)

    @property
    def is_open(self) -> bool:
        return self._descriptor >= 0

    def descriptor(self) -> int:
        """The descriptor, opened if need be. OSError."""
        if self._descriptor < 0:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        return self._descriptor

    def close(self) -> None:
        """Give the descriptor back; the next record opens another."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def append(self, payload: bytes) -> None:
        """Write one record, all or nothing: it survives the death of this process, not that of the machine. OSError."""
        if self.untrusted:
            raise StagingError(f"{self.path} could not be written to its disk", errno.EIO)
        data = _frame(payload, self.records)
        descriptor = self.descriptor()
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], self.size + written)
        except OSError:
            if written:
                try:
                    os.ftruncate(descriptor, self.size)
                except OSError:
                    # the half record would be followed by good ones: nothing more may go into this file
                    self.untrusted = True
            raise
        self.records += 1
        self.size += len(data)

    def cut(self) -> None:
        """Take off whatever lies behind the good records, durably. OSError."""
        os.ftruncate(self.descriptor(), self.size)
        os.fsync(self.descriptor())

    def rewrite(self, payloads: Iterable[bytes]) -> None:
        """Replace all records, atomically and durably. OSError: then the old ones still stand, or it is not known which
        ones the disk has: `untrusted`."""
        new = Journal.create(self.path.with_name(self.path.name + NEW), payloads)
        os.rename(new.path, self.path)
        self.close()
        self.records, self.size, self.untrusted = new.records, new.size, True
        sync_directory(self.path.parent)
        self.untrusted = False


def sync_directory(path: Path) -> None:
    """Make names in a directory durable. OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
