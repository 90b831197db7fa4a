"""The light fields of a whole shard as one text: a line for each sample, with its name. Synchronous, for workers.

Out of a shard's table and the `.json` files it speaks of, so that the size is known before anything is decoded. Knows
nothing of keys, caches or mounts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from shardfs.drivers.base import ShardReader
from shardfs.errors import DamagedShardError
from shardfs.index import ShardTable

_HEAD, _MIDDLE, _TAIL = b'{"sample":', b',"light":', b"}\n"
_NONE = b"{}"
_FRAME = len(_HEAD) + len(_MIDDLE) + len(_TAIL)


def size(table: ShardTable) -> int:
    """Exact bytes of what `render` makes. Takes a microsecond a sample."""
    made = 0
    for sample, file in _light(table):
        made += _FRAME + len(_name(table, sample)) + (len(_NONE) if file is None else table.size(file) - 1)
    return made


def render(table: ShardTable, reader: ShardReader, arrays: str) -> bytes:
    """`{"sample":NAME,"light":{...}}` for each sample, in their order; `{}` for one that has no `.json` of ours (all of
    a WebDataset shard, whose files are as they were stored). DamagedShardError, and the errors of `fetch`."""
    made = bytearray()
    for sample, file in _light(table):
        light = _NONE if file is None else table.render(file, reader, arrays)[:-1]
        made += b"".join((_HEAD, _name(table, sample), _MIDDLE, light, _TAIL))
    if len(made) != size(table):
        raise DamagedShardError("light fields came out with another size than the index says")
    return bytes(made)


def _name(table: ShardTable, sample: int) -> bytes:
    return json.dumps(table.stem(sample).decode("utf-8"), ensure_ascii=False).encode("utf-8")


def _light(table: ShardTable) -> Iterator[tuple[int, int | None]]:
    """Each sample with the number of its `.json`, where that is one that we make."""
    starts = table.columns["file_start"].tolist()
    for sample in range(table.samples):
        yield (
            sample,
            next(
                (
                    file
                    for file in range(starts[sample + 1] - 1, starts[sample] - 1, -1)
                    if table.suffix(file) == b"json" and table.slice_of(file) is None
                ),
                None,
            ),
        )
