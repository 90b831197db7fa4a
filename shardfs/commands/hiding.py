"""Takes secrets that were given in a URL out of what the process list shows of this process. Knows nothing of URLs but
where secrets stand in them.

The kernel shows a process's words from that process's own memory, so writing over them there is all there is to do.
Whoever looks in the milliseconds before that sees them: the environment is the better place.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

log = logging.getLogger("shardfs")

_ARG_START, _ARG_END = 48 - 3, 49 - 3
"""Where the words begin and end: fields of proc(5)'s stat, from the one behind the name."""


def hide(words: Sequence[str]) -> None:
    """Write stars over the secrets of all URLs among `words`."""
    found = [os.fsencode(secret) for word in words for secret in secrets_of(word)]
    if not found:
        return
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    except (OSError, ValueError, IndexError) as error:
        log.debug("the process list cannot be changed: %s", error)
        return
    shown = ctypes.string_at(start, end - start)
    for secret in found:
        at = shown.find(secret)
        while at >= 0:
            ctypes.memmove(start + at, b"*" * len(secret), len(secret))
            at = shown.find(secret, at + len(secret))


def secrets_of(word: str) -> Iterator[str]:
    """What stands before the @ of URLs in a word, and their queries."""
    if "://" in word:
        yield from (secret for secret in re.findall(r"://([^/?\s]*)@", word) if secret)
        yield from re.findall(r"://[^?\s]*\?(\S+)", word)
