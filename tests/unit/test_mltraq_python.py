"""shardfs.mltraq: both examples of mltraq's page on the data store, and what is refused."""

from __future__ import annotations

import errno
import pickle
import uuid
from pathlib import Path

import numpy as np
import pytest

from shardfs import open_store
from shardfs.errors import BadSettingError, MissingFileError
from shardfs.mltraq import Bunch, DataStore, DataStoreIO

EXPERIMENT = "d65df69e-1175-44a5-be2f-2232765703b8"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_datastore_example() -> None:
    """Two DataStores, each a file of its own, of which a url is left."""
    ds = DataStore()
    ds.a = np.zeros(10)
    ds.b = [1, 2, 3]
    ds2 = DataStore()
    ds2["c"] = 123
    urls = [one.to_url("first") for one in (ds, ds2)]
    assert len(list(Path("mltraq.datastore/first").iterdir())) == 2
    read, read2 = (DataStore.from_url(url) for url in urls)
    assert isinstance(read, DataStore)
    assert read.a.tolist() == [0.0] * 10
    assert (read.b, read["b"], read2.c) == ([1, 2, 3], [1, 2, 3], 123)


def test_datastoreio_example() -> None:
    """`a` needs serialisation, `b` is bytes and needs none."""
    prefix = f"self_managed/{EXPERIMENT}"
    url_a = DataStoreIO.serialize_write(np.zeros(10), relative_path_prefix=prefix).url
    url_b = DataStoreIO.write(b"11111", relative_path_prefix=prefix).url
    for url in (url_a, url_b):
        assert url.startswith(f"file:///{prefix}/")
        assert Path("mltraq.datastore", url.removeprefix("file:///")).is_file()
    assert DataStoreIO(url_a).read_deserialize().tolist() == [0.0] * 10
    assert DataStoreIO(url_b).read() == b"11111"
    store = open_store("mltraq.datastore", driver="mltraq")
    assert store.keys() == [prefix]
    assert sorted(type(sample).__name__ for sample in store.get(prefix)) == ["bytes", "ndarray"]
    DataStoreIO.delete("self_managed")
    DataStoreIO.delete("self_managed")
    assert list(Path("mltraq.datastore").iterdir()) == []
    with pytest.raises(FileNotFoundError):
        DataStoreIO(url_a).read()


VALUES = [
    None,
    True,
    -5,
    2**70,
    -(2**2038),
    1.5,
    "日本 \ud800",
    b"\0\xff",
    [1, [2, None]],
    (1, (2,)),
    {1, "a", (2, b"x")},
    {"a": {1: 2, (1, 2): "tuple", None: 0, b"b": b"c"}},
    uuid.UUID(int=5),
    np.datetime64("2024-01-02T03:04:05.123456"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_come_back(value: object) -> None:
    got = DataStoreIO.serialize_write(value).read_deserialize()
    assert (type(got), got) == (type(value), value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3.5),
        np.zeros((0, 3)),
        np.array(["a", "日本"]),
        np.array([(1, 2.5)], dtype=[("a", "<i4"), ("ü", ">f8")]),
        np.array(["2024-01-01"], "M8[D]"),
    ],
    ids=str,
)
def test_arrays_come_back(array: np.ndarray) -> None:
    got = DataStoreIO.serialize_write({"x": [array]}).read_deserialize(dict)["x"][0]
    assert (got.dtype, got.shape, got.tobytes("A")) == (array.dtype, array.shape, array.tobytes("A"))


def test_numbers_of_numpy_are_plain_ones() -> None:
    got = DataStoreIO.serialize_write([np.int8(3), np.float32(1.5), np.bool_(True), np.str_("x")]).read_deserialize()
    assert [type(item) for item in got] == [int, float, bool, str]


def test_a_datastore_in_a_datastore_is_a_file_of_its_own() -> None:
    outer = DataStore(inner=DataStore(a=1), b=[DataStore(c=2)])
    url = outer.to_url("p")
    assert len(list(Path("mltraq.datastore/p").iterdir())) == 3
    read = DataStore.from_url(url)
    assert isinstance(read.inner, DataStore)
    assert (read.inner.a, read.b[0].c) == (1, 2)


def test_attributes_are_members() -> None:
    ds = DataStore(a=1)
    ds.b = 2
    del ds.a
    assert ds == {"b": 2}
    with pytest.raises(AttributeError):
        _ = ds.a
    with pytest.raises(AttributeError):
        del ds.a
    assert isinstance(ds, Bunch)


@pytest.mark.parametrize("prefix", [EXPERIMENT, EXPERIMENT.replace("-", ""), f"{EXPERIMENT}/below"])
def test_an_experiments_directory_is_not_written_to(prefix: str) -> None:
    with pytest.raises(BadSettingError, match="id of an experiment"):
        DataStoreIO.write(b"x", relative_path_prefix=prefix)
    with pytest.raises(BadSettingError, match="id of an experiment"):
        DataStoreIO.delete(prefix)
    assert not Path("mltraq.datastore").exists()


@pytest.mark.parametrize("prefix", ["", "..", "a/../b", "/etc", "a//b", "a?b", "a#b", "a\0b"])
def test_a_prefix_stays_in_the_datastore(prefix: str) -> None:
    with pytest.raises(BadSettingError, match="relative_path_prefix"):
        DataStoreIO.serialize_write(1, relative_path_prefix=prefix)


@pytest.mark.parametrize("url", ["file:///../secret", "file:////etc/passwd", "file:///a/../../secret", "http://x/y"])
def test_a_url_that_leads_out_is_refused(tmp_path: Path, url: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(BadSettingError):
        DataStoreIO(url).read()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    DataStoreIO.write(b"x", "p")
    (tmp_path / "mltraq.datastore/p/link").symlink_to(tmp_path / "secret")
    (tmp_path / "mltraq.datastore/q").symlink_to(tmp_path)
    for url in ("file:///p/link", "file:///q/secret"):
        with pytest.raises(MissingFileError) as caught:
            DataStoreIO(url).read()
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    "value",
    [{"DATAPAK-0": 1}, 2**2040, np.array([object()]), {1: object()}, frozenset([1]), 1j, bytearray(b"x")],
    ids=lambda value: type(value).__name__,
)
def test_what_the_library_could_not_read_is_not_written(value: object) -> None:
    with pytest.raises(BadSettingError):
        DataStoreIO.serialize_write([DataStore(a=1), value])
    assert not Path("mltraq.datastore").exists()


def test_percent_signs_are_what_they_are() -> None:
    url = DataStoreIO.write(b"x", "a%20b").url
    assert url.startswith("file:///a%20b/")
    assert DataStoreIO(url).read() == b"x"
    assert [path.name for path in Path("mltraq.datastore").iterdir()] == ["a%20b"]


def test_a_place_of_the_datastore_as_a_url(tmp_path: Path) -> None:
    url = DataStoreIO.serialize_write({"a": 1}, datastore=f"file:///{tmp_path}/other").url
    assert DataStoreIO(url, datastore=tmp_path / "other").read_deserialize() == {"a": 1}
    with pytest.raises(BadSettingError, match="not a list"):
        DataStoreIO(url, datastore=tmp_path / "other").read_deserialize(list)


def test_a_file_that_refers_to_itself_ends(tmp_path: Path) -> None:
    url = DataStore(a=1).to_url("p")
    file = tmp_path / "mltraq.datastore" / url.removeprefix("file:///")
    file.write_bytes(pickle.dumps({"x": {"DATAPAK-0": "mltraq.DataStore-0", "value": url}}, 5))
    with pytest.raises(BadSettingError, match="nested deeper"):
        DataStore.from_url(url)
    twice = {"DATAPAK-0": "mltraq.DataStore-0", "value": url}
    file.write_bytes(pickle.dumps({"x": dict(twice), "y": dict(twice)}, 5))
    with pytest.raises(BadSettingError):
        DataStore.from_url(url)
