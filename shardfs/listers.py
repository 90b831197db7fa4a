"""Who wants attributes with the names of a listing: `ls -l` and `cp -r` do, `find` has no use for them. Pure state.

The kernel does not say. But where it was given no attributes of a file it asks for them if anybody wants them, and so a
listing with attributes leaves out those of one file (the canary): who never asks for a file of the directory listed
last gets names alone from then on, which cost a fifth.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from shardfs import config


class Listed(Protocol):
    """A directory that is listed."""

    asked: bool
    """True once a name in it was looked up since it was last opened for listing."""


class Counted(Protocol):
    """What is in it."""

    @property
    def files(self) -> int: ...


class Listers:
    """What processes did with the listings they had."""

    def __init__(self) -> None:
        self._last: OrderedDict[int, Listed] = OrderedDict()

    def plus(self, process: int, key: Listed, table: Counted) -> bool:
        """Whether a process that begins to list a key is to have attributes. 0 is a process that is not known."""
        if not process or not has_canary(table):
            return True
        before = self._last.pop(process, None)
        plus = before is None or before.asked
        self._last[process] = key
        if len(self._last) > config.LISTERS:
            self._last.popitem(last=False)
        key.asked = False
        return plus


def has_canary(table: Counted) -> bool:
    """Whether a listing is long enough for one."""
    return table.files >= config.CANARY_FILES
