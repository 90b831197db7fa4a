"""Pickles of plain values read in place: values with positions. Nothing that a pickle names is ever looked up or run.

A pickle is a program for a small machine. Of its instructions this one has those that make None, bools, numbers, texts,
bytes, lists, tuples, dicts and sets, and those that use one of these again; at any other the pickle is refused. Bytes
are given as `values.Blob` with their position, and not read. Source of the instructions: pickletools in CPython's
standard library, protocols 2 to 5.

What is made may hold one list in many places, or itself: `Steps.walk` bounds what that comes to. Knows nothing of what
the values mean.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

from shardfs import config
from shardfs.errors import ShardfsError
from shardfs.values import Blob, Buffer


class PickleRefusedError(ShardfsError, ValueError):
    """A pickle that is broken, cut off, or of more than plain values."""


class Steps:
    """What reading may still cost, counted down: an instruction and a value are a step each, a long text several."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def take(self, steps: int) -> None:
        """PickleRefusedError when nothing is left."""
        self.left -= steps
        if self.left < 0:
            raise PickleRefusedError("more values than bytes of this number can hold in earnest")

    def value(self, value: Any, depth: int) -> None:
        """Count a value that stands `depth` levels deep, without what is in it."""
        if depth > config.NESTING:
            raise PickleRefusedError(f"nested deeper than {config.NESTING} levels")
        kind = type(value)
        self.take(1 + (len(value) // config.TEXT_PER_TOKEN if kind is str else config.FILE_TOKENS * (kind is Blob)))


def read(raw: Buffer, start: int, end: int, steps: Steps) -> Any:
    """The value of the pickle that fills `start` to `end` of `raw`. PickleRefusedError."""
    try:
        return _Machine(raw, start, end, steps).run()
    except PickleRefusedError:
        raise
    except (ValueError, TypeError, LookupError, struct.error, OverflowError, RecursionError) as error:
        raise PickleRefusedError(f"no pickle of plain values: {str(error)[:100] or type(error).__name__}") from error


class _Mark:
    """Stands on the stack where a run of items begins."""


_MARK = _Mark()
_NOTHING = _Mark()


class _Machine:
    """One pickle being read: a window of its bytes, the stack and the memo."""

    def __init__(self, raw: Buffer, start: int, end: int, steps: Steps) -> None:
        self._raw = raw
        self._end = end
        self._steps = steps
        self._window = b""
        self._base = start
        self._at = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._collisions: dict[int, Counter[int]] = {}

    def run(self) -> Any:
        steps, operations, simple = self._steps, _OPERATIONS, _SIMPLE
        stack = self._stack
        while True:
            if self._at >= len(self._window):
                self._refill(1)
            code = self._window[self._at]
            self._at += 1
            steps.take(1)
            if code in simple:
                stack.append(simple[code])
            elif code == _STOP:
                return self._result()
            else:
                operation = operations.get(code)
                if operation is None:
                    raise PickleRefusedError(f"instruction {bytes((code,))!r}, which is not for plain values")
                operation(self)

    def _result(self) -> Any:
        if len(self._stack) != 1 or self._base + self._at != self._end:
            raise PickleRefusedError("the pickle ends before its bytes do, or leaves values over")
        return self._popped()

    # --- bytes --------------------------------------------------------------------------------------------------

    def _refill(self, count: int) -> None:
        """Have the next `count` bytes in the window."""
        here = self._base + self._at
        if here + count > self._end:
            raise PickleRefusedError("the pickle is cut off")
        size = max(count, config.PICKLE_WINDOW)
        self._window = bytes(self._raw[here : min(here + size, self._end)])
        self._base, self._at = here, 0

    def _take(self, count: int) -> bytes:
        if self._at + count > len(self._window):
            self._refill(count)
        data = self._window[self._at : self._at + count]
        self._at += count
        return data

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _skip(self, count: int) -> int:
        """Pass over `count` bytes; where they are."""
        here = self._base + self._at
        if here + count > self._end:
            raise PickleRefusedError("the pickle is cut off")
        self._at += count
        if self._at > len(self._window):
            self._window, self._base, self._at = b"", here + count, 0
        return here

    # --- the stack ----------------------------------------------------------------------------------------------

    def _popped(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise PickleRefusedError("a value is missing")
        return value

    def _items(self) -> list[Any]:
        stack = self._stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise PickleRefusedError("the beginning of a run is missing")
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise PickleRefusedError(f"an instruction for a {kind.__name__} where there is none")
        return self._stack[-1]

    def key(self, value: Any, holder: Any) -> Any:
        """A value as the key of a dict or a member of a set. Few may have the same hash: a million that do, which only
        numbers and tuples of them can be made to have, would be compared with each other."""
        kind = type(value)
        if kind is str or value is None or kind is bool:
            return value
        made = _hashable(value, self._raw, [config.PICKLE_KEY])
        if kind is not Blob:
            seen = self._collisions.setdefault(id(holder), Counter())
            seen[hash(made)] += 1
            if seen[hash(made)] > config.PICKLE_COLLISIONS and made not in holder:
                raise PickleRefusedError("too many keys of one hash")
        return made

    # --- instructions -------------------------------------------------------------------------------------------

    def protocol(self) -> None:
        if self._number(1) > 5:
            raise PickleRefusedError("a pickle of a protocol above 5")

    def frame(self) -> None:
        self._number(8)

    def text(self, width: int) -> None:
        count = self._number(width)
        if self._base + self._at + count > self._end:
            raise PickleRefusedError("the pickle is cut off")
        self._steps.take(count // config.TEXT_PER_TOKEN)
        self._stack.append(str(self._take(count), "utf-8", "surrogatepass"))

    def bytes(self, width: int) -> None:
        count = self._number(width)
        self._stack.append(Blob(self._skip(count), count))

    def long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number(1)), "little", signed=True))

    def tuple(self, count: int) -> None:
        stack = self._stack
        if len(stack) < count or _MARK in stack[len(stack) - count :]:
            raise PickleRefusedError("values of a tuple are missing")
        made = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        stack.append(made)

    def append(self) -> None:
        value = self._popped()
        self._top(list).append(value)

    def appends(self) -> None:
        items = self._items()
        self._top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        holder = self._top(dict)
        if len(items) % 2:
            raise PickleRefusedError("a key without a value")
        for at in range(0, len(items), 2):
            holder[self.key(items[at], holder)] = items[at + 1]

    def add_items(self) -> None:
        items = self._items()
        holder = self._top(set)
        for item in items:
            holder.add(self.key(item, holder))

    def frozen_set(self) -> None:
        made: set[Any] = set()
        for item in self._items():
            made.add(self.key(item, made))
        self._stack.append(frozenset(made))

    def pair(self) -> list[Any]:
        value = self._popped()
        return [self._popped(), value]

    def put(self, number: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleRefusedError("nothing to remember")
        self._memo[number] = self._stack[-1]

    def get(self, number: int) -> None:
        value = self._memo.get(number, _NOTHING)
        if value is _NOTHING:
            raise PickleRefusedError("a value that was not remembered")
        self._stack.append(value)


def _hashable(value: Any, raw: Buffer, left: list[int]) -> Any:
    """A value that can be hashed at no great cost: of a nested tuple each part is hashed anew wherever it stands."""
    left[0] -= 1
    if left[0] < 0:
        raise PickleRefusedError("too large a key")
    if type(value) is Blob:
        if value.length > config.PICKLE_KEY * 16:
            raise PickleRefusedError("too large a key")
        return bytes(raw[value.offset : value.offset + value.length])
    if type(value) is tuple:
        return tuple(_hashable(item, raw, left) for item in value)
    if type(value) is frozenset:
        return frozenset(_hashable(item, raw, left) for item in value)
    if isinstance(value, list | dict | set):
        raise PickleRefusedError(f"a {type(value).__name__} as a key")
    return value


_STOP = ord(".")
_SIMPLE: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False, ord("("): _MARK, ord(")"): ()}


def _pushes(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine._stack.append(make(machine))


_OPERATIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("J"): _pushes(lambda machine: struct.unpack("<i", machine._take(4))[0]),
    ord("K"): _pushes(lambda machine: machine._number(1)),
    ord("M"): _pushes(lambda machine: machine._number(2)),
    0x8A: _Machine.long,
    ord("G"): _pushes(lambda machine: struct.unpack(">d", machine._take(8))[0]),
    0x8C: lambda machine: machine.text(1),
    ord("X"): lambda machine: machine.text(4),
    0x8D: lambda machine: machine.text(8),
    ord("C"): lambda machine: machine.bytes(1),
    ord("B"): lambda machine: machine.bytes(4),
    0x8E: lambda machine: machine.bytes(8),
    ord("]"): _pushes(lambda machine: []),
    ord("}"): _pushes(lambda machine: {}),
    0x8F: _pushes(lambda machine: set()),
    0x91: _Machine.frozen_set,
    ord("t"): _pushes(lambda machine: tuple(machine._items())),
    0x85: lambda machine: machine.tuple(1),
    0x86: lambda machine: machine.tuple(2),
    0x87: lambda machine: machine.tuple(3),
    ord("a"): _Machine.append,
    ord("e"): _Machine.appends,
    ord("s"): lambda machine: machine.set_items(machine.pair()),
    ord("u"): lambda machine: machine.set_items(machine._items()),
    0x90: _Machine.add_items,
    0x94: lambda machine: machine.put(len(machine._memo)),
    ord("q"): lambda machine: machine.put(machine._number(1)),
    ord("r"): lambda machine: machine.put(machine._number(4)),
    ord("h"): lambda machine: machine.get(machine._number(1)),
    ord("j"): lambda machine: machine.get(machine._number(4)),
}
