"""Squirrel stores in Python, with the names and arguments of squirrel-core: change the import, keep the program.

`SquirrelStore`, `MessagepackDriver` and `JsonlDriver` read and write what the library of that name does; a serializer
derived from `SquirrelSerializer` and a driver derived from `StoreDriver` work with formats of one's own.
"""

from shardfs.squirrel.drivers import IterDriver, JsonlDriver, MapDriver, MessagepackDriver, StoreDriver
from shardfs.squirrel.serializers import JsonlSerializer, MessagepackSerializer, SquirrelSerializer
from shardfs.squirrel.stores import AbstractStore, SquirrelStore

__all__ = [
    "AbstractStore",
    "IterDriver",
    "JsonlDriver",
    "JsonlSerializer",
    "MapDriver",
    "MessagepackDriver",
    "MessagepackSerializer",
    "SquirrelSerializer",
    "SquirrelStore",
    "StoreDriver",
]
