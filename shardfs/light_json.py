"""Light values as strict JSON, with a closed list of tags for what JSON has no word for, and back.

Knows nothing of file names: heavy values inside light ones are handed to a function that gives them a file.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
import uuid
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from shardfs import config
from shardfs.errors import DamagedShardError
from shardfs.values import Extension, is_heavy

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def _quick_encoder() -> Callable[[Any], str]:
    """What `_encoder.encode` does, without making its encoder in C anew for each call: half the time of a small object.
    It does not look for circles, which no value tree has."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return _encoder.encode
    chunks = make(None, _encoder.default, json.encoder.encode_basestring, None, ": ", ", ", False, False, False)
    return lambda value: "".join(chunks(value, 0))


_encode = _quick_encoder()


def json_bytes(value: Any) -> bytes:
    """One line of strict JSON (RFC 8259) and a newline, UTF-8; a lone surrogate stays as its `\\uXXXX` escape.

    ValueError for a float that is no number, TypeError for what JSON has no word for.
    """
    if type(value) is dict:
        for item in value.values():
            if type(item) is str and len(item) >= config.LONG_TEXT:
                return _with_long_texts(value).encode("utf-8", "backslashreplace") + b"\n"
    return _encode(value).encode("utf-8", "backslashreplace") + b"\n"


def text_size(text: str) -> int:
    """Bytes of a text in `json_bytes`, quotes included. A long one's are counted without making them."""
    if len(text) >= config.LONG_TEXT:
        return _long_size(text)
    made = json.encoder.encode_basestring(text)
    return len(made) if made.isascii() else len(made.encode("utf-8", "backslashreplace"))


def _with_long_texts(value: dict[str, Any]) -> str:
    pieces = [
        f"{_encode(key)}: {_long_text(item) if type(item) is str and len(item) >= config.LONG_TEXT else _encode(item)}"
        for key, item in value.items()
    ]
    return "{" + ", ".join(pieces) + "}"


_SHORT = "\n\r\t\b\f"
"""Control characters that JSON writes with two characters; the others take six, like `\\u0000`."""
_ESCAPES = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"), ("\b", "\\b"), ("\f", "\\f"))


def _long_text(text: str) -> str:
    """The JSON of a text; where little is to be escaped, in a fraction of the time of json's own encoder, which goes by
    single characters."""
    try:
        letters = np.frombuffer(text.encode("utf-8"), np.uint8)
    except UnicodeEncodeError:
        return json.encoder.encode_basestring(text)
    controls = letters < 32
    count = int(np.count_nonzero(controls))
    escaped = count + _count(text, letters, '"') + _count(text, letters, "\\")
    if escaped * config.TEXT_PER_ESCAPE > len(text) or (count and letters[controls].tobytes().strip(_SHORT.encode())):
        return json.encoder.encode_basestring(text)
    if escaped:
        for letter, written in _ESCAPES:
            if letter in text:
                text = text.replace(letter, written)
    return f'"{text}"'


def _long_size(text: str) -> int:
    try:
        letters = np.frombuffer(text.encode("utf-8"), np.uint8)
    except UnicodeEncodeError:
        return len(json.encoder.encode_basestring(text).encode("utf-8", "backslashreplace"))
    controls = long = int(np.count_nonzero(letters < 32))
    for letter in _SHORT:
        if long:
            long -= _count(text, letters, letter)
    return 2 + len(letters) + _count(text, letters, '"') + _count(text, letters, "\\") + controls + 4 * long


def _count(text: str, letters: np.ndarray[Any, np.dtype[np.uint8]], letter: str) -> int:
    """How often a letter stands in a text: to look for it first takes a tenth of the time, and most are not there."""
    return int(np.count_nonzero(letters == ord(letter))) if letter in text else 0


Lift = Callable[[Any, tuple[str, ...]], str]
"""Gives a heavy value that stands at a path (the field, and the way inside it) a file of its own, and returns that
file's name without the sample's."""


_PLAIN = frozenset((type(None), str, bool, int))


def to_json(value: Any, lift: Lift, path: tuple[str, ...]) -> Any:
    """The JSON of a light value, with tags for what JSON has no word for; heavy values in it are lifted out."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": _float_word(value)}
    if kind is list:
        return [
            item if type(item) in _PLAIN else to_json(item, lift, (*path, str(at))) for at, item in enumerate(value)
        ]
    if kind is dict:
        return _dict_json(value, lift, path)
    if is_heavy(value):
        return _heavy_json(value, lift, path)
    return _tagged(value, lift, path)


def _float_word(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _dict_json(value: dict[Any, Any], lift: Lift, path: tuple[str, ...]) -> Any:
    if all(type(key) is str for key in value):
        made = {key: to_json(item, lift, (*path, key[: config.NAME_MAX])) for key, item in value.items()}
        return {"$esc": made} if looks_tagged(value) else made
    pairs = [
        [to_json(key, no_lift, path), to_json(item, lift, (*path, str(at)))]
        for at, (key, item) in enumerate(value.items())
    ]
    return {"$map": pairs}


def looks_tagged(value: dict[Any, Any]) -> bool:
    """True for a user's own dict that has the form of a tag: one key, which begins with `$`."""
    return len(value) == 1 and str(next(iter(value))).startswith("$")


def no_lift(value: Any, path: tuple[str, ...]) -> str:
    """The `Lift` for places where no file can stand (names of fields, members of sets): bytes stand there as
    `$bytes`, and an array cannot."""
    raise DamagedShardError("an array where only plain values can stand")


def _heavy_json(value: Any, lift: Lift, path: tuple[str, ...]) -> Any:
    if lift is no_lift and isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": base64.b64encode(bytes(value)).decode("ascii")}
    if isinstance(value, msgpack.ExtType) and lift is no_lift:
        return {"$ext": [value.code, _heavy_json(value.data, lift, path)]}
    made: Any = {"$file": lift(value, path)}
    if isinstance(value, Extension | msgpack.ExtType):
        made = {"$ext": [value.code, made]}
    return made


def plain_number(value: np.generic[Any]) -> Any:
    """The plain Python value of a numpy scalar; of those that Python has no type for the nearest, or their count."""
    if isinstance(value, np.longdouble):
        return float(value)
    if isinstance(value, np.clongdouble):
        return complex(value)
    if isinstance(value, np.timedelta64):
        return None if np.isnat(value) else int(value.astype(np.int64))
    return value.item()


def _tagged(value: Any, lift: Lift, path: tuple[str, ...]) -> Any:
    if isinstance(value, tuple):
        return {"$tuple": [to_json(item, lift, (*path, str(at))) for at, item in enumerate(value)]}
    if isinstance(value, np.generic):
        return to_json(plain_number(value), lift, path)
    if isinstance(value, complex):
        return {"$complex": [to_json(value.real, lift, path), to_json(value.imag, lift, path)]}
    if isinstance(value, set | frozenset):
        members = [to_json(item, no_lift, path) for item in value]
        return {"$set": sorted(members, key=_encode)}
    if isinstance(value, msgpack.Timestamp):
        return {"$timestamp": [value.seconds, value.nanoseconds]}
    if isinstance(value, decimal.Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return {"$datetime": value.isoformat()}
    if isinstance(value, uuid.UUID):
        return {"$uuid": str(value)}
    bases: tuple[Callable[[Any], Any], ...] = (str, bool, int, float, list, dict)
    for base in bases:  # subclasses of what json knows
        if isinstance(value, base):  # type: ignore[arg-type]
            return to_json(base(value), lift, path)
    raise DamagedShardError(f"a value of type {type(value).__name__}, which has no form in a file")


def from_json(value: Any, file: Callable[[str], Any]) -> Any:
    """The value that `to_json` made this from; `file(name)` gives the value of a lifted file.

    Raises ValueError for a tag with an impossible content.
    """
    if type(value) is list:
        return [from_json(item, file) for item in value]
    if type(value) is not dict:
        return value
    if not looks_tagged(value):
        return {key: from_json(item, file) for key, item in value.items()}
    ((tag, body),) = value.items()
    try:
        return _untag(tag, body, file)
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"tag {tag} with an impossible content") from error


def _untag(tag: str, body: Any, file: Callable[[str], Any]) -> Any:
    simple: dict[str, Callable[[Any], Any]] = {
        "$float": {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.__getitem__,
        "$decimal": decimal.Decimal,
        "$uuid": uuid.UUID,
        "$bytes": lambda text: base64.b64decode(text, validate=True),
        "$timestamp": lambda pair: msgpack.Timestamp(*pair),
        "$datetime": _parse_datetime,
        "$file": file,
        "$esc": lambda body: {key: from_json(item, file) for key, item in body.items()},
        "$complex": lambda pair: complex(from_json(pair[0], file), from_json(pair[1], file)),
        "$tuple": lambda items: tuple(from_json(item, file) for item in items),
        "$set": lambda items: {hashable(from_json(item, file)) for item in items},
        "$map": lambda pairs: {hashable(from_json(key, file)): from_json(item, file) for key, item in pairs},
        "$ext": lambda pair: msgpack.ExtType(pair[0], from_json(pair[1], file)),
    }
    if tag not in simple:
        raise ValueError(f"unknown tag {tag}")
    return simple[tag](body)


def hashable(value: Any) -> Any:
    """A value as a name of a field, or in a set: lists as tuples, sets as frozen ones. ValueError for what is none."""
    if isinstance(value, list | tuple) and not isinstance(value, msgpack.ExtType):
        return tuple(hashable(item) for item in value)
    if isinstance(value, dict | np.ndarray):
        raise ValueError("a value that cannot be the name of a field, or in a set")
    return frozenset(value) if isinstance(value, set) else value


def _parse_datetime(text: str) -> datetime.datetime | datetime.date | datetime.time:
    if ":" not in text:
        return datetime.date.fromisoformat(text)
    if text[4:5] == "-":
        return datetime.datetime.fromisoformat(text)
    return datetime.time.fromisoformat(text)
