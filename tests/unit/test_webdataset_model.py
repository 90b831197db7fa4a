"""A writable WebDataset store against a dict: names and bytes are what was written, over seals and new mounts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from shardfs import open_store
from tests.conformance.webdataset_suite import members
from tests.unit.test_writing_model import Writing
from tests.unit.writing_player import KEYS, STEPS, Mount


class WritingTars(Writing):
    """Keys are dicts of names and bytes, and so are the tars."""

    keys = st.sampled_from(KEYS)
    odd_names = st.sampled_from(["000001.json", "cat.json", "cat.seg.png", "d%2Fx.jpg", "cat.JPG", "000000.npy"])
    contents = st.binary(max_size=300)

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        samples = [{"__key__": "000000", "f.bin": b"one"}, {"__key__": "000001", "f.bin": b"two", "g.bin": b"three"}]
        open_store(self.root / "store", driver="webdataset").set(samples, "old")
        self.model = {"old": {"000000.f.bin": b"one", "000001.f.bin": b"two", "000001.g.bin": b"three"}}
        self.mount = self._mounted()

    def _mounted(self) -> Mount:
        return Mount(self.root / "store", self.root / "state", system="webdataset", delete=True, overwrite=True)

    @rule(key=keys, name=odd_names, data=contents)
    def write_oddly(self, key: str, name: str, data: bytes) -> None:
        self._key(key)[name] = data
        self.mount.write(f"{key}/{name}", data)

    @rule(key=keys, files=st.dictionaries(odd_names, contents, min_size=1, max_size=3))
    def replace(self, key: str, files: dict[str, bytes]) -> None:
        self._replace(key, files)

    def _sealed(self, files: dict[str, bytes]) -> dict[str, bytes]:
        return dict(files)

    @rule(key=keys)
    def seal(self, key: str) -> None:
        if self.model.get(key):
            self.mount.sync(key)
            stored = members(self.root / f"store/{key}.tar")
            assert stored == {name.replace("%2F", "/"): data for name, data in self.model[key].items()}


TestWritingTars = WritingTars.TestCase
TestWritingTars.settings = STEPS
TestWritingTars.pytestmark = [pytest.mark.timeout(110)]  # type: ignore[attr-defined]
del Writing
