"""Serializers: how samples become a shard's bytes. Knows nothing of stores.

The two formats of squirrel-core are written and read by shardfs's own driver for them (`format` names it); what a
serializer of one's own does is up to its methods.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from shardfs.drivers.squirrel_records import jsonl_line, msgpack_record
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.errors import DamagedShardError


class SquirrelSerializer(ABC):
    """Turns samples into bytes and back. A store asks for whole shards: a serializer of one's own has the two methods
    for them, too, which are given the path of the file and `fs`, whose `open(path, mode, compression=None)` opens it.
    """

    format: str | None = None
    """`msgpack` or `jsonl` for the two that shardfs writes and reads itself."""

    @abstractmethod
    def serialize(self, obj: Any) -> Any:
        """One sample, serialized."""

    @abstractmethod
    def deserialize(self, obj: Any) -> Any:
        """The sample that `serialize` made this of."""

    def serialize_shard_to_file(self, obj: list[Any], fp: str, **kwargs: Any) -> None:
        """Write the samples of a shard to the file `fp`."""
        raise NotImplementedError(f"{type(self).__name__} has no serialize_shard_to_file, so it cannot write shards")

    def deserialize_shard_from_file(self, fp: str, **kwargs: Any) -> Iterable[Any]:
        """The samples of the shard in the file `fp`."""
        raise NotImplementedError(f"{type(self).__name__} has no deserialize_shard_from_file, so it cannot read shards")


class MessagepackSerializer(SquirrelSerializer):
    """msgpack with numpy's arrays and numbers, one object a sample. Object arrays, which are pickles, stay bytes."""

    format = "msgpack"

    def serialize(self, obj: Any) -> bytes:
        """A sample as a msgpack object. BadSettingError for a value that has none."""
        return msgpack_record(obj, "given")

    def deserialize(self, obj: bytes) -> Any:
        """The sample in a msgpack object. DamagedShardError."""
        return _only(obj, "msgpack")


class JsonlSerializer(SquirrelSerializer):
    """JSON, one line a sample, with arrays as nested lists beside their type and shape.

    `deser_hook` is given each object as a dict, inner ones first, and what it returns stands for it.
    """

    format = "jsonl"

    def __init__(self, deser_hook: Callable[[dict[str, Any]], Any] | None = None) -> None:
        self.deser_hook = deser_hook

    def serialize(self, obj: Any) -> bytes:
        """A sample as a line of JSON, with its end. BadSettingError for a value that has none."""
        return jsonl_line(obj, "given")

    def deserialize(self, obj: bytes | str) -> Any:
        """The sample in a line of JSON. DamagedShardError."""
        data = obj.encode() if isinstance(obj, str) else obj
        return _only(data, "jsonl") if self.deser_hook is None else hooked_line(data, self.deser_hook)


def hooked_line(line: bytes, hook: Callable[[dict[str, Any]], Any]) -> Any:
    """A line of JSON in which `hook` makes the objects. DamagedShardError for what is none."""
    try:
        return json.loads(line, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise DamagedShardError(f"a line that is not JSON ({error})", 0) from error


def _only(data: bytes, format: str) -> Any:
    shard = SquirrelShard(data, len(data), format)
    trees = [record.tree for record in shard.records()]
    if len(trees) != 1:
        raise DamagedShardError(f"{len(trees)} samples where there should be one", 0)
    return shard.sample(trees[0])
