"""Runs in the environment of Superduper 0.3: `write DIR` makes a store as its manual does and prints what its rows hold
as the library reads them; `dump DIR` prints that of a store that is there. `mongo DIR` does the same with mongomock,
which lives in this process, and leaves its documents as BSON in DIR/<collection>.bson."""

import contextlib
import json
import os
import pathlib
import pickle
import sys
import types

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.modules["lance"] = types.ModuleType("lance")  # of vector search; named when the library is imported, and not used

from superduper_side import described  # noqa: E402

TYPES = {"x": "artifact", "lazy": "lazy_artifact", "f": "file", "d": "file"}


def rows(folder):
    source = folder / "source"
    (source / "test_copy" / "sub").mkdir(parents=True)
    (source / "weights.v1.bin").write_bytes(b"weights")
    (source / "test_copy" / "a").write_bytes(b"a")
    (source / "test_copy" / "sub" / "b").write_bytes(b"b")
    for number in range(3):
        yield {
            "id": f"doc{number}",
            "n": number,
            "s": f"text {number}",
            "x": "This is a test" if number < 2 else {"i": [1, (2, None)]},
            "lazy": ["big", number] * 100,
            "f": str(source / "weights.v1.bin"),
            "d": str(source / "test_copy"),
        }


def leave_documents(database, folder):
    import bson

    for name in database.list_collection_names():
        documents = b"".join(bson.encode(document) for document in database[name].find({}))
        (folder / f"{name}.bson").write_bytes(documents)


def main():
    command, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    os.chdir(folder)
    with contextlib.redirect_stdout(sys.stderr):
        from superduper import DataType, Document, Schema, superduper
        from superduper.components.table import Table

        artifacts = {"artifact_store": f"filesystem://{folder}/artifacts"}
        if command == "mongo":
            db = superduper("mongomock://test", **artifacts)
        else:  # SQLAlchemy counts the slashes of a path otherwise than ibis does
            metadata = f"sqlite:///{folder}/db.sqlite"
            db = superduper(f"sqlite://{folder}/db.sqlite", metadata_store=metadata, **artifacts)
        columns = ("id", "n", "s", *TYPES)
        if command != "dump":
            fields = {
                column: DataType(
                    f"my-{column}",
                    encoder=None if kind == "file" else lambda x, info=None: pickle.dumps(x),
                    decoder=None if kind == "file" else lambda x, info=None: pickle.loads(x),
                    encodable=kind,
                )
                for column, kind in TYPES.items()
            }
            plain = {} if command == "mongo" else {"id": "str", "n": "int", "s": "str"}
            db.apply(Table("docs", schema=Schema("schema", fields={**plain, **fields})))
            documents = [Document(row) for row in rows(folder)]
            insert = db["docs"].insert_many if command == "mongo" else db["docs"].insert
            db.execute(insert(documents))
        select = db["docs"].find({}) if command == "mongo" else db["docs"].select(*columns)
        found = [row.unpack() for row in db.execute(select)]
        if command == "mongo":
            for part in (db.databackend, db.metadata):  # two connections, which are two databases with mongomock
                leave_documents(part.conn.test, folder)
    json.dump({row["id"]: {name: described(row[name]) for name in columns} for row in found}, sys.stdout)


if __name__ == "__main__":
    main()
