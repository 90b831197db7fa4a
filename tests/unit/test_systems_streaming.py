"""What docs/SYSTEMS.md says of MosaicML Streaming: its examples run, and each name it has is there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from shardfs import open_store, streaming

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "streaming"

METHODS = {
    *("decode_sample", "evict", "get_item", "get_max_size", "get_persistent_size", "get_raw_size"),
    *("get_sample_data", "get_zip_size", "set_up_local", "size"),
}
"""All that the system's own document has of the class."""


def section() -> str:
    text = (ROOT / "docs" / "SYSTEMS.md").read_text(encoding="utf-8")
    return text.partition("## Streaming\n")[2].partition("\n## ")[0]


def test_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA)
    test = doctest.DocTestParser().get_doctest(section(), {}, "Streaming", "docs/SYSTEMS.md", 0)
    assert len(test.examples) > 15
    told: list[str] = []
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=told.append)
    assert results.failed == 0, "".join(told)


def test_each_method_of_the_document_is_there_and_in_the_table() -> None:
    table = section().partition("| class `Reader`")[2].partition("\n\n")[0]
    for name in METHODS:
        assert hasattr(streaming.Reader, name)
        assert re.search(rf"`{name}[(`]", table), name
    for name in ("MDSReader", "JSONReader", "CSVReader", "TSVReader", "XSVReader", "reader_from_json", "readers"):
        assert name in streaming.__all__
        assert name in table


@pytest.mark.parametrize("compression", ["zstd", "gz", "bz2", "br", "snappy"])
@pytest.mark.parametrize("format", ["mds", "json", "csv", "tsv"])
def test_each_format_and_compression_is_written_and_read(tmp_path: Path, format: str, compression: str) -> None:
    samples = [{"n": at, "t": str(at), "x": at / 2} for at in range(5)]
    open_store(tmp_path, driver="streaming", format=format, compression=compression).set(samples, "train/a")
    open_store(tmp_path).set(samples, "train/b")  # as the one before
    assert [list(open_store(tmp_path).get(key)) for key in ("train/a", "train/b")] == [samples, samples]
    assert {path.name.partition(".")[2] for path in (tmp_path / "train").iterdir()} - {"json"} == {
        f"{format}{part}.{compression}" for part in ([""] if format == "mds" else ["", ".meta"])
    }
    found = streaming.readers(tmp_path, "train")
    assert [list(reader) for reader in found] == [samples, samples]
    assert all(reader.compression == compression for reader in found)
