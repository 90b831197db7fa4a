"""How wide a terminal is, whether it shows colours, and lines that fit. Knows nothing of what is shown."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TextIO

PLAIN_WIDTH = 80
"""Columns where nothing says how many there are."""

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "faint": "2", "bold": "1"}


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def redraws(stream: TextIO | None) -> bool:
    """Whether a line can be written anew: on a terminal, but not on one that only prints on (TERM=dumb)."""
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Columns of the terminal, or of COLUMNS."""
    return max(20, shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns)


def height() -> int:
    """Lines of the terminal, or of LINES."""
    return max(5, shutil.get_terminal_size((PLAIN_WIDTH, 24)).lines)


def coloured(stream: TextIO | None = None) -> bool:
    """Whether colours are shown: on a terminal that has them, unless NO_COLOR is set to anything."""
    return redraws(stream or sys.stdout) and not os.environ.get("NO_COLOR")


def paint(text: str, colour: str, shown: bool) -> str:
    """A text in a colour, where colours are `shown`."""
    return f"\033[{_COLOURS[colour]}m{text}\033[0m" if shown and text else text


def cut(text: str, columns: int) -> str:
    """The beginning of a line that is too long, which then ends in dots."""
    return text if len(text) <= columns else text[: max(0, columns - 3)] + "..."


def listed(names: list[str], columns: int, most: int) -> str:
    """As many names as fit, `most` at most, and how many there are besides."""
    shown: list[str] = []
    for name in names[:most]:
        left = len(names) - len(shown) - 1
        behind = f", and {left} more" if left else ""
        if shown and len(", ".join([*shown, name])) + len(behind) > columns:
            break
        shown.append(name)
    left = len(names) - len(shown)
    return cut(", ".join(shown) + (f", and {left} more" if left else ""), columns)


def wrapped(text: str, columns: int, indent: str) -> list[str]:
    """A text in lines that fit where its words do, all but the first indented twice. Nothing of it is left out."""
    return textwrap.wrap(
        text,
        columns,
        initial_indent=indent,
        subsequent_indent=indent * 2,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [indent]
