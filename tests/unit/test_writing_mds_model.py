"""A writable MDS data set against dicts, with no kernel: samples are numbered through, and only the last key grows."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from shardfs import open_store
from tests.unit.writing_player import KEYS, STEPS, KeysAsDicts, Mount

NAMES = [f"{stem:06d}.f.bin" for stem in range(8)]


def number(name: str) -> int:
    return int(name.partition(".")[0])


class WritingMds(KeysAsDicts):
    """Keys are dicts of names and bytes; `counts` has the samples of those that are stored, in their order."""

    keys, names = st.sampled_from(KEYS), st.sampled_from(NAMES)
    contents = st.binary(max_size=300).map(lambda data: b"text " + data.hex().encode())

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        open_store(self.root / "store", driver="streaming").set([{"f": b"one"}, {"f": b"two"}], "old")
        self.model = {"old": {NAMES[0]: b"one", NAMES[1]: b"two"}}
        self.counts = {"old": 2}
        self.dirty: set[str] = set()
        self.mount = self._mounted()

    def _mounted(self) -> Mount:
        return Mount(self.root / "store", self.root / "state", system="streaming", delete=True, overwrite=True)

    def _vanishes(self, key: str) -> bool:
        return key not in self.counts

    def _gone(self, key: str) -> None:
        super()._gone(key)
        self.dirty.discard(key)

    # --- what is expected ---------------------------------------------------------------------------------------

    def _range(self, key: str) -> range:
        """Numbers of the stored samples of a key; behind all others for a new one."""
        before = list(self.counts).index(key) if key in self.counts else len(self.counts)
        first = sum(list(self.counts.values())[:before])
        return range(first, first + self.counts.get(key, 0))

    def _closed(self, key: str) -> bool:
        return key in self.counts and self._range(key).stop < sum(self.counts.values())

    def _stored(self, key: str) -> None:
        """What a seal makes of a key."""
        files, before = self.model[key], self._range(key)
        if files:
            ordered = sorted(files, key=lambda name: (number(name) not in before, number(name)))
            self.model[key] = {f"{before.start + at:06d}.f.bin": files[name] for at, name in enumerate(ordered)}
            self.counts[key] = len(files)
            self.dirty.discard(key)

    def _last(self) -> str | None:
        return next((key for key in reversed(self.counts) if self.counts[key]), None)

    def _blocked(self) -> bool:
        """Whether a new key must wait: the last one was emptied, and not removed. Else that is stored first."""
        last = self._last()
        if last is None or last not in self.dirty:
            return False
        if not self.model[last]:
            return True
        self._stored(last)
        return False

    def _refused(self, *call: Any) -> None:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            call[0](*call[1:])
        assert caught.value.errno == errno.EPERM

    # --- what is done -------------------------------------------------------------------------------------------

    @rule(key=keys, name=names, data=contents)
    def write(self, key: str, name: str, data: bytes) -> None:
        files = self._key(key)
        if self._closed(key) and number(name) not in self._range(key):
            self._refused(self.mount.write, f"{key}/{name}", data)
            return
        files[name] = data
        self.dirty.add(key)
        self.mount.write(f"{key}/{name}", data)

    @rule(key=keys, name=names, size=st.integers(0, 400))
    def truncate(self, key: str, name: str, size: int) -> None:
        files = self.model.get(key, {})
        if name in files:
            self.mount.truncate(f"{key}/{name}", size)
            files[name] = files[name][:size].ljust(size, b"\0")
            self.dirty.add(key)

    @rule(key=keys, name=names)
    def unlink(self, key: str, name: str) -> None:
        files = self.model.get(key, {})
        if name not in files:
            return
        if self._closed(key):
            self._refused(self.mount.unlink, f"{key}/{name}")
            return
        del files[name]
        self.dirty.add(key)
        self.mount.unlink(f"{key}/{name}")

    @rule(key=keys, name=names, new=names)
    def rename(self, key: str, name: str, new: str) -> None:
        files = self.model.get(key, {})
        if name not in files:
            return
        if self._closed(key) and name != new:
            self._refused(self.mount.rename, f"{key}/{name}", f"{key}/{new}")
            return
        self.mount.rename(f"{key}/{name}", f"{key}/{new}")
        if name != new:
            files[new] = files.pop(name)
            self.dirty.add(key)

    @rule(key=keys, name=names, data=contents)
    def replace_by_renaming(self, key: str, name: str, data: bytes) -> None:
        """As careful programs write a file: with a backup, and by renaming another over it."""
        files = self.model.get(key, {})
        if name not in files:
            return
        self.mount.rename(f"{key}/{name}", f"{key}/{name}~")
        self.mount.write(f"{key}/.{name}.swp", data)
        self.mount.rename(f"{key}/.{name}.swp", f"{key}/{name}")
        self.mount.unlink(f"{key}/{name}~")
        files[name] = data
        self.dirty.add(key)

    @rule(key=keys)
    def remove(self, key: str) -> None:
        if key in self.model and not (self._closed(key) and self.model[key]):
            for name in self.model[key]:
                self.mount.unlink(f"{key}/{name}")
            self.mount.rmdir(key)
            del self.model[key]
            self.counts.pop(key, None)
            self.dirty.discard(key)

    @rule(key=keys, files=st.dictionaries(names, contents, min_size=1, max_size=3))
    def replace(self, key: str, files: dict[str, bytes]) -> None:
        self._key(key)
        temporary = self._plain(key, files)
        expected = self._expected_of_replacing(key, len(files))
        if expected is None:
            self.mount.rename(temporary, key)
            self.model[key] = files
            self._stored(key)
            return
        with pytest.raises(OSError) as caught:  # noqa: PT011
            self.mount.rename(temporary, key)
        assert caught.value.errno in expected, (caught.value, expected)
        self._removed(temporary, files)

    def _expected_of_replacing(self, key: str, count: int) -> tuple[int, ...] | None:
        if key in self.counts:
            if key in self.dirty:
                return (errno.EBUSY,)
            return (errno.EPERM,) if self._closed(key) and count != self.counts[key] else None
        if self.model[key]:
            return (errno.ENOTEMPTY,)
        return (errno.EBUSY,) if self._blocked() else None

    @rule(key=keys)
    def seal(self, key: str) -> None:
        if not self.model.get(key):
            return
        if key not in self.counts and self._blocked():
            with pytest.raises(OSError, match="has changes that could not be stored"):
                self.mount.sync(key)
            return
        self.mount.sync(key)
        self._stored(key)

    @invariant()
    def stored_as_counted(self) -> None:
        entries = open_store(self.root / "store").driver.entries()
        assert {entry.key: entry.samples for entry in entries} == self.counts
        assert [entry.key for entry in entries] == list(self.counts)


TestWritingMds = WritingMds.TestCase
TestWritingMds.settings = STEPS
TestWritingMds.pytestmark = [pytest.mark.timeout(110)]  # type: ignore[attr-defined]


def test_regression_the_last_key_is_known_as_soon_as_those_behind_it_are_gone(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", driver="streaming")
    for key in ("a", "b"):
        store.set([{"f": b"one"}, {"f": b"two"}], key)
    with Mount(tmp_path / "store", tmp_path / "state", system="streaming", delete=True) as mount:
        mount.write("a/000000.f.bin", b"text")
        with pytest.raises(PermissionError, match="2 samples behind it"):
            mount.unlink("a/000001.f.bin")
        for name in ("000002.f.bin", "000003.f.bin"):
            mount.unlink(f"b/{name}")
        mount.rmdir("b")
        mount.unlink("a/000001.f.bin")
        mount.sync("a")
        mount.mkdir("c")
        mount.write("c/000000.f.bin", b"text")
        mount.write("a/000000.f.bin", b"text again")
        mount.write("a/000007.f.bin", b"one more")
        mount.sync("c")
        with pytest.raises(PermissionError, match="1 sample behind it"):
            mount.write("a/000008.f.bin", b"")
    assert [len(store.get(key)) for key in store] == [2, 1]
