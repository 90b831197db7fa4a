"""Words of MosaicML Streaming's settings: sizes as `100kb`, compressions as `zstd:7`. Knows nothing of who uses them.

Source: what mosaicml-streaming 0.13.0 takes for one and what not, found by running it.
"""

from __future__ import annotations

import re

from shardfs import config
from shardfs.errors import BadSettingError

_UNITS = {unit: 1 << 10 * power for power, unit in enumerate(("kb", "mb", "gb", "tb", "pb", "eb", "zb", "yb"), 1)}

LEVELS = {
    "zstd": range(1, 23),
    "gz": range(10),
    "bz2": range(1, 10),
    "br": range(12),
    "snappy": range(0),
}
"""Compressions and the levels that they may name; each is the ending of its files, too."""

FORMATS = ("mds", "json", "csv", "tsv", "xsv")
"""Formats of shards, each the ending of its files."""

_COMPRESSION = re.compile(rf"({'|'.join(LEVELS)})(?::([0-9]{{1,2}}))?")


def bytes_to_int(size: float | str) -> int:
    """A number of bytes, or a text: `100`, `100b`, `1.5kb` (1024 bytes each), `10 mb`, up to `yb`. BadSettingError (a
    ValueError)."""
    text = size.lower().strip() if isinstance(size, str) else size
    try:
        if not isinstance(text, str):
            return int(text)
        if text[-2:] in _UNITS:
            return int(float(text[:-2]) * _UNITS[text[-2:]])
        if (digits := text.removesuffix("b")).isdecimal():
            return int(digits)
    except (ValueError, OverflowError) as error:
        raise BadSettingError(f"size {size!r} is none ({error})") from error
    raise BadSettingError(f"size {size!r}: use bytes, or a number with {', '.join(_UNITS)}")


def shard_limit(size: float | str | None) -> int | None:
    """The `size_limit` of shards that are to be written: None, and 0, for none. BadSettingError."""
    made = bytes_to_int(size or 0)
    if not 0 <= made <= config.MDS_SHARD:
        raise BadSettingError(f"size {size!r}: a shard holds less than 4 GiB")
    return made or None


def shard_format(text: str | None) -> tuple[str | None, str | None]:
    """The format of new shards, and the separator of XSV's columns, which stands behind a colon: `xsv:||`; without it
    that of the shard before. BadSettingError."""
    if text is None or text in FORMATS:
        return text, None
    kind, _, separator = text.partition(":")
    if kind != "xsv" or not separator or "\n" in separator:
        raise BadSettingError(f"format {text!r}: use {', '.join(FORMATS[:-1])}, or xsv with its separator: xsv:||")
    return kind, separator


def codec_of(text: str | None) -> tuple[str | None, int | None, str]:
    """Codec, level and file ending of an index's compression, to write it. BadSettingError for one that the library
    does not have."""
    if text is None:
        return None, None, ""
    codec = codec_to_read(text)
    level = int(text.partition(":")[2]) if ":" in text else None
    if codec is None or (level is not None and level not in LEVELS[codec]):
        raise BadSettingError(f"compression {text} is none of MosaicML Streaming's: {', '.join(LEVELS)}, with a level")
    return codec, level, "." + codec


def codec_to_read(text: str) -> str | None:
    """The codec that an index's compression names, whatever level it was written with; None for one not known here."""
    match = _COMPRESSION.fullmatch(text)
    return None if match is None else match[1]
