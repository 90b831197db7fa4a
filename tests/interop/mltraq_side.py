"""Runs in mltraq's own environment, in the folder of a datastore; prints descriptions as JSON.

experiment         writes an experiment as the library does, and says what its run holds
clash              writes another one that shares its table
read URL...        what the library reads there
both               pandas' and Arrow's objects between the library and shardfs.mltraq, in one process
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import mltraq
import numpy as np
import pandas as pd
import pyarrow as pa
from mltraq.storage.datastore import DataStore, DataStoreIO
from mltraq_values import VALUES, describe_more


def experiment():
    session = mltraq.create_session("sqlite:///exp.db")
    made = session.create_experiment("my example")
    made.fields.note = "hello"
    with made.run() as run:
        run.fields.ds = DataStore()
        run.fields.ds.update(VALUES)
        run.fields.ds.inner = DataStore({"x": np.arange(5)})
        run.fields.ds2 = DataStore({"c": 123})
        run.fields.number = 1.5
        run.fields.flag = True
        run.fields.listed = [1, (2, None)]
        prefix = f"self_managed/{made.id_experiment}"
        run.fields.url_a = DataStoreIO.serialize_write(np.zeros(10), relative_path_prefix=prefix).url
        run.fields.url_b = DataStoreIO.write(b"11111", relative_path_prefix=prefix).url
    made.persist()
    (run,) = made.runs.values()
    return {"run": str(run.id_run), "fields": {name: describe_more(value) for name, value in run.fields.items()}}


def clash():
    """An experiment whose name comes to the same table as that of another."""
    other = mltraq.create_session("sqlite:///exp.db").create_experiment("my-example")
    with other.run() as run:
        run.fields.number = 2.5
    other.persist(if_exists="replace")
    return {"run": str(run.id_run)}


def both():
    from shardfs import mltraq as ours

    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]})
    table = pa.table({"a": [1, 2], "s": ["p", None]})
    found = {}
    for name, value in {"frame": frame, "series": pd.Series([1, 2, 3]), "table": table}.items():
        theirs = DataStoreIO(ours.DataStoreIO.serialize_write({"x": value}).url).read_deserialize()["x"]
        mine = ours.DataStoreIO(DataStoreIO.serialize_write({"x": value}).url).read_deserialize()["x"]
        found[name] = [bool(type(got) is type(value) and value.equals(got)) for got in (theirs, mine)]
    named = ours.DataStoreIO.serialize_write(pd.Series([1], name="n")).url
    found["named series"] = [DataStoreIO(named).read_deserialize().tolist() == [1]] * 2
    return found


def main():
    command, folder, *urls = sys.argv[1:]
    os.chdir(folder)
    if command == "read":
        result = {url: describe_more(DataStoreIO(url).read_deserialize()) for url in urls}
    else:
        result = {"experiment": experiment, "clash": clash, "both": both}[command]()
    json.dump(result, sys.stdout)


main()
