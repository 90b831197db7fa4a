"""msgpack maps that stand for arrays, numpy scalars and complex numbers, as msgpack-numpy writes them.

Source of the form: what msgpack-numpy 0.4.8 writes, run and read. An object array is a pickle there, which is looked at
and never run. Knows nothing of how msgpack is read.
"""

from __future__ import annotations

import pickletools
import re
from typing import Any

import numpy as np

from shardfs import config, values
from shardfs.errors import DamagedShardError, OverfullShardError
from shardfs.values import Array, Blob, Pickle, Tree


def numpy_value(made: dict[Any, Tree], raw: values.Buffer, at: int) -> Tree:
    """What a map with bytes keys stands for: an array, a numpy scalar or a complex number as msgpack-numpy writes
    them; the map itself where parts are missing."""
    try:
        if b"nd" in made:
            data = made[b"data"]
            if made[b"nd"] is True:
                return _array(made, data, raw, at)
            dtype = values.safe_dtype(_plain_text(made[b"type"], raw))
            if not isinstance(data, Blob) or dtype.kind not in "biufcmM" or data.length < dtype.itemsize:
                # numbers only: numpy fails within over texts that hold no characters
                raise DamagedShardError("a numpy scalar that is no number, or without its bytes", at)
            return np.frombuffer(raw[data.offset : data.offset + dtype.itemsize], dtype)[0]
        if b"complex" in made:
            return complex(_plain_text(made[b"data"], raw))
    except KeyError:
        return made
    except (ValueError, TypeError) as error:
        raise DamagedShardError(f"an array or number that cannot be: {error}", at) from error
    return made


def _array(made: dict[Any, Tree], data: Tree, raw: values.Buffer, at: int) -> Tree:
    kind = made.get(b"kind", b"")
    kind = kind.value(raw) if isinstance(kind, Blob) else kind
    shape = made[b"shape"]
    if kind in (b"O", "O"):
        if not isinstance(data, Blob):
            raise DamagedShardError("an object array without its bytes", at)
        _refuse_foreign_pickle(data.value(raw), data.offset)
        return Pickle(data.offset, data.length)
    spec = made[b"type"]
    dtype = values.safe_dtype(_descr(spec, raw) if isinstance(spec, list) else _plain_text(spec, raw))
    if not isinstance(data, Blob):
        raise DamagedShardError("an array without its bytes", at)
    return Array(data.offset, dtype, values.checked_shape(shape, dtype, data.length))


def _plain_text(value: Tree, raw: values.Buffer) -> str:
    if isinstance(value, Blob):
        value = value.value(raw).decode("ascii")
    if not isinstance(value, str) or len(value) > 1024:
        raise ValueError("no text where the name of a type is due")
    return value


def _descr(spec: list[Tree], raw: values.Buffer) -> tuple[Any, ...]:
    """The fields of a structured dtype, `[name, type(, shape)]` each, as the hashable tuples numpy takes."""
    fields = []
    for field in spec:
        if not isinstance(field, list) or len(field) not in (2, 3):
            raise ValueError("a field of a structured type that is none")
        kind = _descr_list(field[1], raw) if isinstance(field[1], list) else _plain_text(field[1], raw)
        fields.append((_plain_text(field[0], raw), kind, *(tuple(dim) for dim in field[2:])))
    return tuple(fields)


def _descr_list(spec: list[Tree], raw: values.Buffer) -> Any:
    # numpy wants lists of tuples below; made hashable by going through a dtype of its own
    return values.safe_dtype(_descr(spec, raw))


_PLAIN_NAME = re.compile(
    r"""numpy(\._?core\.(multiarray|numeric))?\ (
            _reconstruct | ndarray | dtype | scalar | _frombuffer | bool_? | str_ | bytes_ | u?int(8|16|32|64)
            | u?longlong | float(16|32|64|128) | complex(64|128|256) | c?longdouble | datetime64 | timedelta64 | void )
        | (builtins|__builtin__)\ (
            bool | bytearray | bytes | complex | dict | float | frozenset | int | list | object | range | set | slice
            | str | tuple )
        | copy_?reg\ (_reconstructor|__newobj__)
        | _codecs\ encode
        | collections\ (OrderedDict|defaultdict|deque|Counter)
        | datetime\ (date|datetime|time|timedelta|timezone)
        | decimal\ Decimal
        | uuid\ (UUID|SafeUUID)""",
    re.VERBOSE,
)
"""`module name` of what may stand in the pickle of an array of plain values."""

_FOREIGN_OPCODES = frozenset(("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"))


def _refuse_foreign_pickle(data: bytes, at: int) -> None:
    """An object array's pickle is shown as bytes and never run; one that names anything beyond data types was made
    to attack whoever does run it, and damns the shard. Only looks at the opcodes."""
    names: list[str] = []  # pushed by the opcodes just before this one
    memo: dict[Any, str] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= config.PICKLE_OPS:
                raise OverfullShardError(at)
            if opcode.name in ("GLOBAL", "INST"):
                _refuse_foreign_name(str(argument), at)
            elif opcode.name == "STACK_GLOBAL":
                _refuse_foreign_name(" ".join(names[-2:]), at)
            elif opcode.name in _FOREIGN_OPCODES:
                raise DamagedShardError(f"a pickle with {opcode.name}, which is no data", at)
            if "UNICODE" in opcode.name:
                names.append(str(argument))
            elif "GET" in opcode.name:
                names.append(memo.get(argument, ""))
            elif opcode.name == "MEMOIZE" or "PUT" in opcode.name:
                memo[len(memo) if argument is None else argument] = names[-1] if names else ""
            else:
                names.clear()
    except DamagedShardError:
        raise
    except Exception as error:  # pickletools raises whatever its parsers raise
        raise DamagedShardError(f"an object array whose pickle cannot be read ({type(error).__name__})", at) from error


def _refuse_foreign_name(name: str, at: int) -> None:
    if not _PLAIN_NAME.fullmatch(name):
        raise DamagedShardError(f"a pickle that calls {name[:80].replace(' ', '.')}, which is no data", at)
