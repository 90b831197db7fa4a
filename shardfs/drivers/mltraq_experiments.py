"""One experiment of an mltraq database as samples: its own fields, and each of its runs. Knows nothing of keys, nor of
the datastore. Source of the format: what mltraq 0.1.165 writes and reads, found by running it.
"""

from __future__ import annotations

from typing import Any

from shardfs import config
from shardfs.drivers import mltraq_datapak as datapak
from shardfs.drivers import mltraq_records as records
from shardfs.drivers.mltraq_database import Experiment, Snapshot, table_of
from shardfs.drivers.mltraq_datastore import prefix_of
from shardfs.drivers.mltraq_shards import Assembly, run_cells
from shardfs.errors import DamagedShardError, StaleShardError
from shardfs.pickle_spans import PickleRefusedError

EXPERIMENT = "experiment"
"""The sample of an experiment's own fields."""


def assemble(snapshot: Snapshot, experiment: Experiment, assembly: Assembly) -> None:
    """An experiment's fields and runs as samples. DamagedShardError for what was not persisted to the end."""
    row = snapshot.row(experiment.id)
    if row is None:
        raise StaleShardError(f"{experiment.name} is gone since it was listed")
    assembly.row(EXPERIMENT, [("fields", records.FIELDS, row.fields)] if row.fields is not None else [])
    table, kinds, serialised = _meta(row.meta, experiment)
    columns, rows = snapshot.runs(table, experiment.id)
    for cells in rows:
        run = cells[0] if isinstance(cells[0], str) else str(cells[0])
        assembly.row(prefix_of(run), run_cells(columns, cells[1:], kinds, serialised))


def _meta(data: bytes | None, experiment: Experiment) -> tuple[str, dict[str, str], frozenset[str]]:
    """Table of the runs, their fields' types, and which of them are blobs. DamagedShardError where it is no such."""
    if data is None:
        raise DamagedShardError("it has no meta, which says what its runs hold")
    try:
        data = datapak.plain(data, config.BOMB_FLOOR)
        tree: Any = datapak.decode(memoryview(data), 0, len(data), _nothing, records.steps_for(len(data)))
        runs = tree["runs"]
        columns = runs.get("columns") or {}
        kinds = {str(name): str(kind) for name, kind in (columns.get("types") or {}).items()}
        table = runs.get("table_name") or table_of(experiment.name)
        return str(table), kinds, frozenset(map(str, columns.get("serialized") or ()))
    except (PickleRefusedError, TypeError, LookupError, AttributeError) as error:
        raise DamagedShardError(f"its meta says nothing of its runs: {error}"[:300]) from error


def _nothing(url: str) -> Any:
    raise datapak.UnresolvedError("nothing is referred to here")
