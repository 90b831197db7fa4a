"""shardfs: stores of sharded samples, as Python objects and as a mounted file system.

`open_store` needs nothing but the core dependencies; mounting needs the extra `mount`. What is named here is imported
when it is first asked for, so that the command line starts without numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardfs.errors import ShardfsError
    from shardfs.opening import open_store
    from shardfs.store import Sample, Samples, Store

__version__ = "0.1.0"

__all__ = ["Sample", "Samples", "ShardfsError", "Store", "__version__", "open_store"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'shardfs' has no attribute {name!r}")
    from importlib import import_module

    homes = {"ShardfsError": "shardfs.errors", "open_store": "shardfs.opening"}
    return getattr(import_module(homes.get(name, "shardfs.store")), name)
