"""Facts for people: columns, sizes, ages. Pure; knows nothing of what they are of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_AGES = ((86_400, "d"), (3_600, "h"), (60, "min"), (0, "s"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows under a head, columns two blanks apart; those with numbers in `right` lean to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def size(count: int) -> str:
    """Bytes, in the largest binary unit of which there is one."""
    if count < 1024:
        return f"{count} B"
    amount, unit = float(count), 0
    while amount >= 1024 and unit < 5:
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.1f} {'KMGTP'[unit - 1]}iB"


def age(since_ns: int, now_ns: int) -> str:
    """How long ago, in the largest unit of which there is one; times that are still to come are now."""
    seconds = max(0, now_ns - since_ns) // 1_000_000_000
    length, unit = next((length, unit) for length, unit in _AGES if seconds >= length)
    return f"{seconds // (length or 1)} {unit}"


def number(count: int, one: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"
