"""shardfs: stores of sharded samples, as Python objects and as a mounted file system.

`open_store` needs nothing but the core dependencies; mounting needs the extra `mount`.
"""

from shardfs.errors import ShardfsError
from shardfs.store import Sample, Samples, Store, open_store

__version__ = "0.1.0"

__all__ = ["Sample", "Samples", "ShardfsError", "Store", "__version__", "open_store"]
