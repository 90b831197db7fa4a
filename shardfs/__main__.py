"""`python -m shardfs` is `shardfs`."""

from __future__ import annotations

import sys

from shardfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
