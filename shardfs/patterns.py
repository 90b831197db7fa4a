"""What an argument means that names files with braces: `shard-{000..099}.tar`. Knows nothing of stores or drivers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shardfs import config
from shardfs.errors import BadSettingError

_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


def expand(text: str) -> list[str]:
    """All names that the braces stand for, in their order: `{a,b}`, and `{08..11}` with as many digits as the wider end
    has where one begins with 0. As shells and the braceexpand package have them, but not inside one another.
    BadSettingError for braces that are none of this, and for more than config.BRACES names."""
    made = [""]
    for plain, braces in _parts(text):
        words = [""] if braces is None else _words(text, braces)
        if len(made) * len(words) > config.BRACES:
            raise BadSettingError(f"{text}: more than {config.BRACES} names")
        made = [before + plain + word for before in made for word in words]
    return made


def _parts(text: str) -> Iterator[tuple[str, str | None]]:
    """Each run of plain text, with what stands in the braces behind it."""
    at = 0
    for found in re.finditer(r"\{([^{}]*)\}", text):
        yield text[at : found.start()], found[1]
        at = found.end()
    yield text[at:], None


def _words(text: str, braces: str) -> list[str]:
    ends = _RANGE.fullmatch(braces)
    if ends is None:
        if "," not in braces:
            raise BadSettingError(f"{text}: {{{braces}}} is neither a range as {{000..099}} nor a list as {{a,b}}")
        return braces.split(",")
    first, last = int(ends[1]), int(ends[2])
    if abs(last - first) >= config.BRACES:
        raise BadSettingError(f"{text}: more than {config.BRACES} names")
    padded = any(end.startswith("0") and len(end) > 1 for end in ends.groups())
    digits = max(map(len, ends.groups())) if padded else 1
    step = 1 if last >= first else -1
    return [f"{number:0{digits}d}" for number in range(first, last + step, step)]
