"""msgpack read in place: value trees whose bytes stay where they are in the shard.

The msgpack library, which is used for writing, would copy each shard once more into a buffer of its own and hold the
GIL for whole samples; and it cannot say where a value stands, which is what a file served by slicing needs.
What is small and plain, and is not served as a slice, is left to the library nevertheless. Source of the format: the
msgpack specification (github.com/msgpack/msgpack, spec.md). Knows nothing of shards, files or compression.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from shardfs import config, values
from shardfs.errors import DamagedShardError, OverfullShardError
from shardfs.numpy_maps import numpy_value
from shardfs.values import Array, Blob, Extension, Pickle, Tree

_FIXED: dict[int, tuple[Callable[..., tuple[Any, ...]], int]] = {
    0xCA: (struct.Struct(">f").unpack_from, 4),
    0xCB: (struct.Struct(">d").unpack_from, 8),
    0xCC: (struct.Struct(">B").unpack_from, 1),
    0xCD: (struct.Struct(">H").unpack_from, 2),
    0xCE: (struct.Struct(">I").unpack_from, 4),
    0xCF: (struct.Struct(">Q").unpack_from, 8),
    0xD0: (struct.Struct(">b").unpack_from, 1),
    0xD1: (struct.Struct(">h").unpack_from, 2),
    0xD2: (struct.Struct(">i").unpack_from, 4),
    0xD3: (struct.Struct(">q").unpack_from, 8),
}
_CONSTANT = {0xC0: None, 0xC2: False, 0xC3: True}
_STR = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BIN = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_EXT = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXEXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_ARRAY = {0xDC: 2, 0xDD: 4}
_MAP = {0xDE: 2, 0xDF: 4}
_TIMESTAMP = -1
_BIN_LENGTH: dict[int, tuple[Callable[..., tuple[Any, ...]], int]] = {
    code: (struct.Struct(form).unpack_from, size)
    for (code, size), form in zip(_BIN.items(), (">B", ">H", ">I"), strict=True)
}
_LIGHT = frozenset((type(None), bool, int, float, str))
_QUICK = _LIGHT | {bytes}
_STR_ONLY = frozenset((str,))


@dataclass(frozen=True, slots=True)
class ArrayHead:
    """What stands before an array's own bytes: where the same bytes stand again, the same array follows."""

    raw: bytes
    cost: int
    """Values that the array counts as."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    length: int
    """Bytes of the array."""


def quick_record(record: values.Buffer) -> dict[str, Tree] | None:
    """The tree of a small record that is a map of plain values and bytes, the bytes copied; None for any other.

    By the msgpack library, five times as fast as Walker for so few bytes. It takes the last of several fields of one
    name, so fields are counted; its other failings are in larger records and other types.
    """
    if not 0 < len(record) <= config.QUICK_RECORD or record[0] & 0xF0 != 0x80:
        return None
    try:
        made = msgpack.unpackb(record)
    except (ValueError, TypeError):  # Walker says what is wrong
        return None
    return made if _is_flat(made, record[0], _QUICK) else None


def light_records(raw: values.Buffer, at: int) -> Iterator[tuple[dict[str, Tree], int]]:
    """Samples from `at` on, each with the position behind it, for as long as they are maps of plain light values.

    By the msgpack library, which takes a sixth of Walker's time. It ends at whatever else there is, damage included,
    and counts nothing: only for raw bytes too few to hold too many values (config.TOKENS_PER_RAW_BYTE).
    """
    while True:
        begin = at
        unpacker = msgpack.Unpacker()
        unpacker.feed(raw[begin : begin + config.LIGHT_PIECE])
        try:
            while True:
                made = unpacker.unpack()
                if not _is_flat(made, raw[at], _LIGHT):
                    return
                at = begin + unpacker.tell()
                yield made, at
        except msgpack.OutOfData:
            if at == begin:
                return
        except (ValueError, TypeError):  # Walker says what is wrong
            return


def _is_flat(made: Any, code: int, kinds: frozenset[type]) -> bool:
    """True for what the library made of a short map of texts to values of `kinds`, if no field stood twice in it."""
    return (
        code & 0xF0 == 0x80
        and len(made) == code & 0x0F
        and kinds.issuperset(map(type, made.values()))
        and _STR_ONLY.issuperset(map(type, made))
    )


class Walker:
    """Reads msgpack objects out of `raw` one after the other. Raises DamagedShardError with the offset.

    `limit` bounds the number of values, keys included, that are made in all; samples, files and long texts count as
    several (config.py says how many). `heads` are those of arrays in the samples before, by field; several walkers may
    share them, in several threads.
    """

    def __init__(self, raw: values.Buffer, limit: int, heads: dict[str, ArrayHead] | None = None) -> None:
        self._raw = raw
        self._end = len(raw)
        self._heads: dict[str, ArrayHead] = {} if heads is None else heads
        self.left = limit
        """What is left of it."""

    def read(self, position: int) -> tuple[Tree, int]:
        """The object at `position` and the position behind it."""
        self.left = left = self.left - config.SAMPLE_TOKENS
        if left < 0:
            raise OverfullShardError(position)
        quick = self._fields(position)
        if quick is not None:
            return quick
        self.left = left
        return self._value(position, 0)

    def _fields(self, at: int) -> tuple[Tree, int] | None:
        """The map that nearly every sample is, in one loop over its fields; None for whatever is not so simple:
        `_value` then reads it from its beginning, and says what is wrong with it.

        Spends what `_value` would, so that a value inside that is too much is found at the same place.
        """
        raw = self._raw
        made: dict[Any, Tree] = {}
        spent, per_token = 1, config.TEXT_PER_TOKEN
        try:
            if raw[at] & 0xF0 != 0x80:
                return None
            count = raw[at] & 0x0F
            at += 1
            for done in range(count):
                code = raw[at]
                if not 0xA0 <= code < 0xC0:
                    return None
                start = at + 1
                at = start + (code & 0x1F)
                key = str(raw[start:at], "utf-8")
                spent += 2 + (code & 0x1F) // per_token
                code = raw[at]  # and so all of the name was there
                at += 1
                if code < 0x80:
                    made[key] = code
                elif 0xA0 <= code < 0xC0:
                    start, at = at, at + (code & 0x1F)
                    made[key] = str(raw[start:at], "utf-8")
                    spent += (code & 0x1F) // per_token
                elif code in _FIXED:
                    unpack, size = _FIXED[code]
                    made[key] = unpack(raw, at)[0]
                    at += size
                elif code in _BIN_LENGTH:
                    unpack, size = _BIN_LENGTH[code]
                    start = at + size
                    at = start + unpack(raw, at)[0]
                    made[key] = Blob(start, at - start)
                    spent += config.FILE_TOKENS
                elif code in _CONSTANT:
                    made[key] = _CONSTANT[code]
                else:
                    if len(made) != done or key in made:
                        return None
                    self.left -= spent - 1
                    if self.left < 0:
                        return None
                    spent = 0
                    made[key], at = self._inner(key, at - 1)
        except (IndexError, struct.error, UnicodeDecodeError):
            return None
        self.left -= spent
        # what stands behind the end is missed by the slices above; a field that stands twice by the map
        return None if at > self._end or len(made) != count or self.left < 0 else (made, at)

    def _inner(self, field: str, at: int) -> tuple[Tree, int]:
        """The value of a sample's field by `_value`, but for an array with the very head that the one before had."""
        heads = self._heads
        known = heads.get(field)
        if known is not None:
            start = at + len(known.raw)
            end = start + known.length
            if end <= self._end and known.cost <= self.left and bytes(self._raw[at:start]) == known.raw:
                self.left -= known.cost
                return Array(start, known.dtype, known.shape), end
        left = self.left
        value, end = self._value(at, 1)
        if type(value) is Array and value.offset + value.length == end and value.offset - at <= config.ARRAY_HEAD:
            if len(heads) >= config.ARRAY_HEADS:
                heads.clear()
            head = bytes(self._raw[at : value.offset])
            heads[field] = ArrayHead(head, left - self.left, value.dtype, value.shape, value.length)
        return value, end

    def _spend(self, tokens: int, at: int) -> None:
        self.left -= tokens
        if self.left < 0:
            raise OverfullShardError(at)

    def _value(self, at: int, depth: int) -> tuple[Tree, int]:
        """One object. Ordered by how often each kind is met."""
        raw = self._raw
        if at >= self._end:
            raise DamagedShardError("the msgpack data end in the middle of a sample", at)
        self.left -= 1
        if self.left < 0:
            raise OverfullShardError(at)
        code = raw[at]
        if code < 0x80:
            return code, at + 1
        if 0xA0 <= code < 0xC0:
            return self._text(at + 1, code & 0x1F)
        if code >= 0xE0:
            return code - 0x100, at + 1
        if code < 0x90:
            return self._map(at + 1, code & 0x0F, depth)
        if code < 0xA0:
            return self._list(at + 1, code & 0x0F, depth)
        if code in _FIXED:
            unpack, size = _FIXED[code]
            self._need(at + 1, size)
            return unpack(raw, at + 1)[0], at + 1 + size
        if code in _CONSTANT:
            return _CONSTANT[code], at + 1
        return self._sized(code, at, depth)

    def _sized(self, code: int, at: int, depth: int) -> tuple[Tree, int]:
        """An object whose length stands behind its code."""
        if code in _BIN:
            length, at = self._length(at + 1, _BIN[code])
            self._need(at, length)
            self._spend(config.FILE_TOKENS, at)
            return Blob(at, length), at + length
        if code in _STR:
            length, at = self._length(at + 1, _STR[code])
            return self._text(at, length)
        if code in _MAP:
            length, at = self._length(at + 1, _MAP[code])
            return self._map(at, length, depth)
        if code in _ARRAY:
            length, at = self._length(at + 1, _ARRAY[code])
            return self._list(at, length, depth)
        if code in _FIXEXT:
            return self._ext(at + 1, _FIXEXT[code])
        if code in _EXT:
            length, at = self._length(at + 1, _EXT[code])
            return self._ext(at, length)
        raise DamagedShardError(f"byte {code:#04x} begins no msgpack object", at)

    def _need(self, at: int, size: int) -> None:
        if at + size > self._end:
            raise DamagedShardError(f"{size} bytes are announced and {max(0, self._end - at)} are left", at)

    def _length(self, at: int, width: int) -> tuple[int, int]:
        self._need(at, width)
        return int.from_bytes(self._raw[at : at + width], "big"), at + width

    def _text(self, at: int, length: int) -> tuple[str, int]:
        end = at + length
        if end > self._end:
            self._need(at, length)
        if length >= config.TEXT_PER_TOKEN:
            self._spend(length // config.TEXT_PER_TOKEN, at)
        try:
            return str(self._raw[at:end], "utf-8"), end
        except UnicodeDecodeError as error:
            raise DamagedShardError(f"text that is not UTF-8 ({error.reason})", at) from error

    def _list(self, at: int, length: int, depth: int) -> tuple[list[Tree], int]:
        self._nest(at, depth)
        items = []
        for _ in range(length):
            item, at = self._value(at, depth + 1)
            items.append(item)
        return items, at

    def _map(self, at: int, length: int, depth: int) -> tuple[Tree, int]:
        self._nest(at, depth)
        start = at
        made: dict[Any, Tree] = {}
        special = False
        for _ in range(length):
            key, behind = self._value(at, depth + 1)
            if type(key) is not str:
                key = self._plain_key(key, at)
                special = special or type(key) is bytes
            if key in made:
                raise DamagedShardError(f"the field {str(key)[:80]!r} stands twice in one map", at)
            made[key], at = self._value(behind, depth + 1)
        return (numpy_value(made, self._raw, start) if special else made), at

    def _plain_key(self, key: Any, at: int) -> Any:
        """A map key as a hashable plain value: bytes instead of a reference, tuples instead of lists."""
        if isinstance(key, Blob | Extension):
            self._spend(key.length // config.TEXT_PER_TOKEN, at)
            return key.value(self._raw)
        if isinstance(key, list):
            return tuple(self._plain_key(item, at) for item in key)
        if isinstance(key, dict | Array | Pickle):
            raise DamagedShardError("a map or an array as the name of a field", at)
        return key

    def _nest(self, at: int, depth: int) -> None:
        if depth >= config.NESTING:
            raise DamagedShardError(f"nested deeper than {config.NESTING} levels", at)

    def _ext(self, at: int, length: int) -> tuple[Tree, int]:
        self._need(at, 1 + length)
        code = self._raw[at] - 0x100 if self._raw[at] > 0x7F else self._raw[at]
        at += 1
        if code == _TIMESTAMP:
            try:
                return msgpack.Timestamp.from_bytes(bytes(self._raw[at : at + length])), at + length
            except ValueError as error:
                raise DamagedShardError(f"a timestamp that is none ({error})", at) from error
        if code < 0:
            raise DamagedShardError(f"extension type {code}, which msgpack keeps for itself", at)
        self._spend(config.FILE_TOKENS, at)
        return Extension(code, at, length), at + length
