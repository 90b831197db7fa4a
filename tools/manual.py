"""Writes docs/shardfs.1, the manual page, out of the parsers: `python tools/manual.py`; `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/shardfs.1"
sys.path.insert(0, str(PAGE.parents[1]))


def main() -> int:
    from shardfs import __version__
    from shardfs.commands.arguments import build_parser
    from shardfs.commands.manual import page

    made = page(build_parser(), __version__)
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == made else 1
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
