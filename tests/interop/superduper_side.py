"""Runs in Superduper's own environment (0.10): `write DIR` makes a store and prints what its rows hold as the library
reads them; `dump DIR` prints that of a store that is there."""

import contextlib
import hashlib
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

FIELDS = {
    "id": "str",
    "n": "int",
    "x": "float",
    "flag": "bool",
    "s": "str",
    "art": "pickle",
    "lazy": "dill",
    "arr": "array[float32:2x3]",
    "enc": "pickleencoder",
    "js": "json",
    "f": "file",
    "d": "file",
    "fd": "filedict",
}


def rows(folder):
    import numpy as np

    source = folder / "source"
    (source / "box" / "sub").mkdir(parents=True)
    (source / "my__weights.v1.bin").write_bytes(b"weights")
    (source / "box" / "a").write_bytes(b"a")
    (source / "box" / "sub" / "b").write_bytes(b"b")
    for number in range(3):
        yield {
            "id": f"doc{number}",
            "n": number,
            "x": number / 4,  # the library gives ten digits of a float, whatever is stored
            "flag": bool(number % 2),
            "s": f"text {number} &:blob:none",
            "art": "This is a test" if number < 2 else {"i": [1, (2, None)]},
            "lazy": ["big", number] * 1000,
            "arr": np.arange(6, dtype=np.float32).reshape(2, 3) * number,
            "enc": ("t", number),
            "js": {"a": [1, {"b": None}], "n": number},
            "f": str(source / "my__weights.v1.bin"),
            "d": str(source / "box"),
            "fd": {"k": str(source / "my__weights.v1.bin")},
        }


def described(value):
    """A value as JSON; a path as what lies there."""
    kind = type(value).__name__
    if kind == "ndarray":
        return [kind, str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, bytes):
        return [kind, hashlib.sha256(value).hexdigest()]
    if isinstance(value, dict):
        return [kind, {str(name): described(item) for name, item in value.items()}]
    if isinstance(value, list | tuple):
        return [kind, [described(item) for item in value]]
    if isinstance(value, str) and os.path.isfile(value):
        return ["file", pathlib.Path(value).name, hashlib.sha256(pathlib.Path(value).read_bytes()).hexdigest()]
    if isinstance(value, str) and os.path.isdir(value):
        base = pathlib.Path(value)
        inside = {str(path.relative_to(base)): path.read_text() for path in sorted(base.rglob("*")) if path.is_file()}
        return ["directory", base.name, inside]
    return [kind, value]


def main():
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    os.chdir(folder)
    os.environ["SUPERDUPER_ARTIFACT_STORE"] = f"filesystem://{folder}/artifacts"
    with contextlib.redirect_stdout(sys.stderr):
        from superduper import Table, superduper

        db = superduper(f"sqlite:///{folder}/db.sqlite")
        if command == "write":
            db.apply(Table("docs", fields=FIELDS), force=True)
            db["docs"].insert(list(rows(folder)))
        found = [row.unpack() if hasattr(row, "unpack") else row for row in db["docs"].select().execute()]
    made = {row["id"]: {name: described(row[name]) for name in FIELDS} for row in found}
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
