"""Names of keys, samples and fields as file names and back. Pure; knows nothing of values or files.

What cannot stand in a file name, or would be mistaken for something else, is percent-escaped byte by byte of its
UTF-8. `%` itself always is, so that a lone `%` is free to mean the empty name; so is `~`, which shardfs uses to mark
names it had to shorten or to tell apart.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

from shardfs import config

_UNSAFE = re.compile("[/%~\0-\x1f\x7f-\x9f\ud800-\udfff]+")
_UNSTABLE = re.compile(r"(?<![^.])(tmp|partial)\Z|#\Z")
_PLAIN = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_\-.]*\Z")


def _percent(text: str) -> str:
    return "%" + text.encode("utf-8", "surrogatepass").hex("%").upper()


def escape(text: str) -> str:
    """One component of a file name for any text; `unescape` gives the text back."""
    if _PLAIN.match(text):
        return text
    if not text:
        return "%"
    made = _UNSAFE.sub(lambda match: _percent(match[0]), text)
    return _percent(made[0]) + made[1:] if made[0] in ".$" else made


def unescape(name: str) -> str:
    """The text that `escape` made `name` from. ValueError for what it never makes."""
    if name == "%":
        return ""
    parts = re.split(r"%([0-9A-Fa-f]{2})", name)
    if "%" in "".join(parts[::2]):
        raise ValueError(f"a lone % in {name!r}")
    raw = b"".join(
        bytes.fromhex(part) if at % 2 else part.encode("utf-8", "surrogatepass") for at, part in enumerate(parts)
    )
    return raw.decode("utf-8", "surrogatepass")


def escape_sample(text: str) -> str:
    """A sample's own id as the part of its files' names before the first dot: as `escape`, without any dot."""
    return shorten(escape(text).replace(".", "%2E"), config.NAME_KEEP // 2)


def sample_number(number: int, digits: int) -> str:
    return f"{number:0{digits}d}"


def digits_for(count: int) -> int:
    """Digits that number `count` samples from 0, at least config.SAMPLE_DIGITS, so that names sort as numbers do."""
    return max(config.SAMPLE_DIGITS, len(str(max(count - 1, 0))))


def shorten(name: str, limit: int) -> str:
    """`name` if it has at most `limit` bytes; otherwise its beginning, `~` and 16 hex digits of its SHA-256."""
    raw = name.encode("utf-8")
    if len(raw) <= limit:
        return name
    mark = "~" + hashlib.sha256(raw).hexdigest()[:16]
    kept = raw[: limit - len(mark)].decode("utf-8", "ignore")
    return re.sub(r"%[0-9A-F]?\Z", "", kept) + mark  # never ends in half an escape


def file_suffix(field: str, inside: tuple[str, ...], ext: str, room: int) -> str:
    """What follows `<sample>.`: `field` (escaped already), the path inside it, the extension. At most `room` bytes.

    A field called as its extension is said once: `jpg`, not `jpg.jpg`.
    """
    if field == ext and not inside:
        return ext
    stem = ".".join((field, *(escape(part) for part in inside)))
    if len(stem.encode("utf-8")) + len(ext) + 1 > room:
        stem = shorten(stem, room - (config.NAME_MAX - config.NAME_KEEP) - len(ext) - 1)
    return f"{stem}.{ext}"


def folder_name(field: str, inside: tuple[str, ...], room: int) -> str:
    """As `file_suffix`, for a directory, which has no extension."""
    return shorten(".".join((field, *(escape(part) for part in inside))), room - (config.NAME_MAX - config.NAME_KEEP))


def tell_folders_apart(name: str, taken: dict[str, int], room: int) -> str:
    """As `tell_apart`, for a directory: `~2` comes last. It may be taken as it is by a file's whole suffix, too."""
    wanted = made = same_name(name)
    if wanted not in taken:
        taken[wanted] = 1
        return name
    while same_name(made) in taken:
        taken[wanted] += 1
        made = f"{name}~{taken[wanted]}"
    taken[same_name(made)] = 1
    return made


def own_suffix(text: str, room: int) -> str:
    """What follows `<sample>.` where that is a system's own text: as it stands, what cannot stand in a file name
    percent-escaped, and what would make it look like a program's passing file. At most `room` bytes, cut before the
    extension where that is a short one.

    `unescape` gives the text back where nothing was cut off.
    """
    return _own_suffix(text, room) if len(text) > config.NAME_MAX else _usual_suffix(text, room)


def _own_suffix(text: str, room: int) -> str:
    made = _UNSAFE.sub(lambda match: _percent(match[0]), text)
    made = _percent("$") + made[1:] if made.startswith("$") else made
    made = _UNSTABLE.sub(lambda match: _percent(match[0][0]) + match[0][1:], made)
    if len(made.encode("utf-8")) <= room:
        return made
    stem, dot, ext = made.rpartition(".")
    if not stem or len(ext.encode("utf-8")) > config.EXTENSION_MAX:
        stem, dot, ext = made, "", ""
    return shorten(stem, room - (config.NAME_MAX - config.NAME_KEEP) - len((dot + ext).encode("utf-8"))) + dot + ext


_usual_suffix = lru_cache(maxsize=4096)(_own_suffix)


def field_part(suffix: str) -> str:
    """The part of `<field>.<ext>` that names the field; of a lone `<ext>` that is all of it."""
    return suffix.rpartition(".")[0] or suffix


def same_name(name: str) -> str:
    """What two names share that a case-insensitive file system would take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def tell_apart(suffix: str, taken: dict[str, int], room: int) -> str:
    """`suffix`, with `~2`, `~3` … before its extension if its `same_name` is taken; at most `room` bytes.

    Enters the name into `taken`, which has for each name how often it was wanted: thousands of names that differ in
    case only must not each be tried against all.
    """
    wanted = same_name(suffix)
    if wanted not in taken:
        taken[wanted] = 1
        return suffix
    stem, _, ext = suffix.rpartition(".")
    stem = shorten(stem, room - (config.NAME_MAX - config.NAME_KEEP) - len(ext) - 1)
    while True:
        taken[wanted] += 1
        made = f"{stem}~{taken[wanted]}.{ext}"
        if same_name(made) not in taken:
            taken[same_name(made)] = 1
            return made


def key_path(key: str) -> tuple[str, ...]:
    """The directories that lead to a key, the last one the key's own."""
    return tuple(shorten(escape(part), config.NAME_KEEP) for part in key.split("/"))
