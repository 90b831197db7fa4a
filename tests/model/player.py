"""Does each operation to a system and to the model, and compares what came of it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat as modes
from collections.abc import Callable
from typing import Any

from shardfs import open_store
from tests.conformance.trees import wait_for
from tests.model.operations import Operation, content
from tests.model.renames import rename
from tests.model.systems import System
from tests.model.tree import TEMPORARY, Directory, Fails, File, Handle, Model, sealed

LOST = (errno.ESTALE,)
"""What may be said of a file that another one has taken the place of."""


class Difference(AssertionError):
    """The system did not do as the model."""


class Player:
    """One system, and its model. Each public method is an operation; what it is called with, `operations` draws."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.model = Model()
        self._handles: dict[int, int] = {}
        system.store.mkdir(parents=True)
        samples = [{"f": b"text one"}, {"f": b"text two", "g": b"text three", "n": 3}]
        self._elsewhere("old", samples)
        system.start()

    def end(self) -> None:
        """All is stored, and the store has what it should have."""
        self._close_all()
        self.system.stop()
        self._stopped()
        for key, directory in self.model.all_keys():
            if directory.stored is not None:
                self._check_stored(key, directory.stored)

    def play(self, operation: Operation) -> None:
        getattr(self, operation.name)(*operation.words)

    # --- comparing ----------------------------------------------------------------------------------------------

    def _both(self, real: Callable[[], Any], model: Callable[[], Any]) -> Any:
        """What both give. Difference; OSError where both fail with it."""
        happened: OSError | None = None
        given = None
        try:
            given = real()
        except OSError as error:
            happened = error
        code = 0 if happened is None else happened.errno or -1
        self.model.happened = code
        try:
            expected = model()
        except Fails as failure:
            if code not in failure.codes:
                raise Difference(f"{happened or 'success'}, expected {failure}") from happened
            raise happened or AssertionError from None
        if happened is not None:
            raise Difference(f"{happened!r}, expected success") from happened
        if expected is not None and given != expected:
            raise Difference(f"{_short(given)}, expected {_short(expected)}")
        return given

    def _try(self, real: Callable[[], Any], model: Callable[[], Any]) -> bool:
        try:
            self._both(real, model)
        except OSError:
            return False
        return True

    def _of_file(self, file: File, real: Callable[[], Any], model: Callable[[], Any]) -> None:
        """The same for what is done to an open file, which may be lost."""

        def lost() -> Any:
            if file.frozen and self.model.happened in LOST:
                raise Fails(*LOST)
            return model()

        self._try(real, lost)

    # --- files by name ------------------------------------------------------------------------------------------

    def _open(self, path: str, flags: int) -> int:
        """Open in both."""
        exclusive = bool(flags & os.O_EXCL)

        def model() -> None:
            if flags & os.O_CREAT:
                self.model.create(path, exclusive, 0o640)
            file = self.model.file(path)
            if flags & os.O_TRUNC:
                self.model.truncate(path, 0)
            elif flags & os.O_ACCMODE:
                self.model.taken(self.model.split(path)[0], file)

        return int(self._both(lambda: self.system.open(path, flags, 0o640), model))

    def _changed(self, path: str, flags: int, data: bytes, offset: int | None) -> None:
        try:
            handle = self._open(path, flags)
        except OSError:
            return
        try:
            self._try(
                lambda: self.system.pwrite(handle, data, offset or 0) and None,
                lambda: self.model.write(path, data, offset) if data else None,
            )
        finally:
            self.system.close(handle)
        self.stat(path)

    def write_whole(self, path: str, number: int, size: int, exclusive: bool) -> None:
        data = content(number, size)
        if path.endswith(".json"):
            data = b'{"n": %d}\n' % number if number % 10 else b'{"n'
        flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else os.O_TRUNC)
        self._changed(path, flags, data, 0)

    def write_at(self, path: str, offset: int, number: int, size: int) -> None:
        self._changed(path, os.O_WRONLY, content(number, size), offset)

    def append(self, path: str, number: int, size: int) -> None:
        self._changed(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, content(number, size), None)

    def empty(self, path: str) -> None:
        self._changed(path, os.O_WRONLY | os.O_TRUNC, b"", 0)

    def truncate(self, path: str, size: int) -> None:
        self._try(lambda: self.system.truncate(path, size), lambda: self.model.truncate(path, size))

    def fsync_file(self, path: str) -> None:
        with contextlib.suppress(OSError):
            handle = self._open(path, os.O_RDONLY)
            self.system.fsync(handle)
            self.system.close(handle)

    def read(self, path: str) -> None:
        self._read(path, lambda handle: self.system.pread(handle, 1 << 20, 0), slice(None))

    def read_part(self, path: str, offset: int, size: int) -> None:
        self._read(path, lambda handle: self.system.pread(handle, size, offset), slice(offset, offset + size))

    def map(self, path: str) -> None:
        self._read(path, self.system.mapped, slice(None))

    def _read(self, path: str, real: Callable[[int], bytes], part: slice) -> None:
        try:
            handle = self._open(path, os.O_RDONLY)
        except OSError:
            return
        try:
            self._both(lambda: real(handle), lambda: self.model.file(path).data[part])
        finally:
            self.system.close(handle)

    # --- names --------------------------------------------------------------------------------------------------

    def rename(self, path: str, new: str, exclusive: bool) -> None:
        self._try(lambda: self.system.rename(path, new, exclusive), lambda: rename(self.model, path, new, exclusive))
        self.listing(path.rpartition("/")[0])
        self.listing(new.rpartition("/")[0])
        self.listing(new)

    def unlink(self, path: str) -> None:
        self._try(lambda: self.system.unlink(path), lambda: self.model.unlink(path))

    def mkdir(self, path: str) -> None:
        self._try(lambda: self.system.mkdir(path), lambda: self.model.mkdir(path))

    def rmdir(self, path: str) -> None:
        self._try(lambda: self.system.rmdir(path), lambda: self.model.rmdir(path))

    def remove_all(self, path: str) -> None:
        """As `rm -r`."""
        try:
            names = sorted(self.model.directory(path).children)
        except Fails:
            return
        for name in names:
            below = f"{path}/{name}"
            if isinstance(self.model.find(below), Directory):
                self.remove_all(below)
            else:
                self.unlink(below)
        self.rmdir(path)

    def chmod(self, path: str, mode: int) -> None:
        self._try(lambda: self.system.chmod(path, mode), lambda: self.model.chmod(path, mode))

    def set_time(self, path: str, mtime_ns: int) -> None:
        self._try(lambda: self.system.set_time(path, mtime_ns), lambda: self.model.set_time(path, mtime_ns))

    def stat(self, path: str) -> None:
        def model() -> None:
            found = self.model.find(path)
            if self.model.happened:
                return
            status = self.system.stat(path)
            said = modes.filemode(status.mode), status
            if status.directory != isinstance(found, Directory):
                raise Difference(f"{said}, expected a {type(found).__name__}")
            mode = found.mode if isinstance(found, Directory) or found.staged else 0o644
            if mode is not None and status.mode != mode:
                raise Difference(f"{said}, expected {modes.filemode(mode)}")
            if isinstance(found, File):
                if status.size != len(found.data):
                    raise Difference(f"{said}, expected {len(found.data)} bytes")
                if found.mtime_ns not in (None, status.mtime_ns):
                    raise Difference(f"{said}, expected the time {found.mtime_ns}")

        self._try(lambda: self.system.stat(path) and None, model)

    def listing(self, path: str) -> None:
        self._try(lambda: sorted(self.system.listdir(path)), lambda: sorted(self.model.directory(path).children))

    def compare(self, path: str = "") -> None:
        """All that is there."""
        self.listing(path)
        for name, node in sorted(self.model.directory(path).children.items()):
            below = f"{path}/{name}".lstrip("/")
            self.stat(below)
            if isinstance(node, Directory):
                self.compare(below)
            else:
                self.read(below)

    # --- open files ---------------------------------------------------------------------------------------------

    def open_slot(self, slot: int, path: str, flags: int) -> None:
        self.close_slot(slot)
        with contextlib.suppress(OSError):
            self._handles[slot] = self._open(path, flags)
            writing = bool(flags & os.O_ACCMODE)
            self.model.handles[slot] = Handle(self.model.file(path), writing, bool(flags & os.O_APPEND))

    def close_slot(self, slot: int) -> None:
        if slot in self._handles:
            del self.model.handles[slot]
            self.system.close(self._handles.pop(slot))

    def read_slot(self, slot: int, offset: int, size: int) -> None:
        if slot in self._handles:
            file, handle = self.model.handles[slot].file, self._handles[slot]
            part = slice(offset, offset + size)
            self._of_file(file, lambda: self.system.pread(handle, size, offset), lambda: file.data[part])

    def map_slot(self, slot: int) -> None:
        # a lost file has no pages to map: who touches them gets a signal
        if slot in self._handles and not (file := self.model.handles[slot].file).frozen:
            self._of_file(file, lambda: self.system.mapped(self._handles[slot]), lambda: file.data)

    def write_slot(self, slot: int, offset: int, number: int, size: int) -> None:
        if slot in self._handles:
            data, handle = content(number, size), self._handles[slot]
            self._of_file(
                self.model.handles[slot].file,
                lambda: self.system.pwrite(handle, data, offset),
                lambda: self.model.put(slot, data, offset) or len(data),
            )

    def truncate_slot(self, slot: int, size: int) -> None:
        if slot in self._handles:
            handle = self._handles[slot]
            self._of_file(
                self.model.handles[slot].file,
                lambda: self.system.ftruncate(handle, size),
                lambda: self.model.resize(slot, size),
            )

    def stat_slot(self, slot: int) -> None:
        if slot in self._handles:
            file, handle = self.model.handles[slot].file, self._handles[slot]
            self._of_file(file, lambda: self.system.fstat(handle).size, lambda: len(file.data))

    def fsync_slot(self, slot: int) -> None:
        if slot in self._handles:
            handle = self._handles[slot]
            self._of_file(self.model.handles[slot].file, lambda: self.system.fsync(handle), lambda: None)

    def _close_all(self) -> None:
        for slot in list(self._handles):
            self.close_slot(slot)

    # --- storing ------------------------------------------------------------------------------------------------

    def fsync_directory(self, path: str) -> None:
        def model() -> None:
            found = self.model.directory(path)
            if found.kind == "key":
                self.model.seal(found)

        self._try(lambda: self.system.fsync_directory(path), model)
        self.listing(path)

    def commit(self) -> None:
        failed = self.system.commit()
        expected = self._sealed_all()
        if failed != expected:
            raise Difference(f"{failed}, expected {expected}")
        self.compare()

    def _sealed_all(self) -> dict[str, int]:
        failed = {}
        for key, directory in self.model.all_keys():
            try:
                self.model.seal(directory)
            except Fails as failure:
                (failed[key],) = failure.codes
        return failed

    def evict(self) -> None:
        self.system.evict()

    def remount(self) -> None:
        self._close_all()
        self.system.stop()
        self._stopped()
        self.system.start()
        self._appear()

    def kill(self) -> None:
        for slot in list(self._handles):
            if slot % 2:
                self.close_slot(slot)
        self.system.kill()
        for slot in list(self._handles):
            with contextlib.suppress(OSError, KeyError):  # there is nobody to say it to
                self.close_slot(slot)
        self.model.handles, self._handles = {}, {}
        self.system.start()
        self._appear()

    def _stopped(self) -> None:
        self._sealed_all()

    def _appear(self) -> None:
        """Of directories with nothing in them that the store knows of, some are there again and some are not."""
        self._forget(self.model.root, "")
        self.compare()

    def _forget(self, directory: Directory, path: str) -> None:
        shown = self.system.listdir(path)
        for name, node in list(directory.children.items()):
            if isinstance(node, Directory) and node.kind in ("way", "key") and node.stored is None:
                if node.kind == "way" and name in shown:
                    self._forget(node, f"{path}/{name}".lstrip("/"))
                if not any(node.below()) and name not in shown:
                    del directory.children[name]
                elif not node.children:
                    node.kind = "way" if self._is_way(f"{path}/{name}".lstrip("/")) else "key"

    def _is_way(self, path: str) -> bool:
        """Whether an empty directory is no key yet: whether there can be one in it."""
        try:
            self.system.mkdir(f"{path}/deep")
        except PermissionError:
            return False
        self.system.rmdir(f"{path}/deep")
        return True

    # --- another program ----------------------------------------------------------------------------------------

    def _elsewhere(self, key: str, samples: list[dict[str, object]]) -> None:
        """It stores a key."""
        open_store(self.system.store, driver="squirrel").set(samples, key)
        files: dict[str, bytes] = {}
        for number, sample in enumerate(samples):
            for name, value in sample.items():
                if isinstance(value, bytes):
                    files[f"{number:06d}.{name}.bin"] = value
                else:
                    files[f"{number:06d}.json"] = b'{"n": %d}\n' % value
        directory = self.model.root.children.setdefault(key, Directory("key"))
        assert isinstance(directory, Directory)
        directory.replaced()
        self.model.show(directory, files, {})

    @staticmethod
    def _samples(number: int) -> list[dict[str, object]]:
        return [{"f": content(number + at, 50 * at), "n": number + at} for at in range(1 + number % 3)]

    def store_elsewhere(self, key: str, number: int) -> None:
        there = self.model.root.children.get(key)
        if there is None or (isinstance(there, Directory) and there.stored is not None and not there.overlaid):
            self._elsewhere(key, self._samples(number))
            self._wait_for(key)

    def remove_elsewhere(self, key: str) -> None:
        there = self.model.root.children.get(key)
        if isinstance(there, Directory) and there.stored is not None and not there.overlaid:
            there.replaced()
            open_store(self.system.store, driver="squirrel").delete(key)
            del self.model.root.children[key]
            wait_for(lambda: key not in self.system.listdir(""))

    def _wait_for(self, key: str) -> None:
        """Until the mount has noticed."""
        files = self.model.directory(key).files()

        def seen() -> bool:
            try:
                if sorted(self.system.listdir(key)) != sorted(files):
                    return False
                return all(self._content(f"{key}/{name}") == file.data for name, file in files.items())
            except OSError as error:
                if error.errno not in (errno.ESTALE, errno.ENOENT):
                    raise
                return False

        wait_for(seen)
        self.compare()

    def _content(self, path: str) -> bytes:
        handle = self.system.open(path, os.O_RDONLY)
        try:
            return self.system.pread(handle, 1 << 20, 0)
        finally:
            self.system.close(handle)

    def conflict(self, key: str, number: int) -> None:
        """It stores a key that was changed here: both are there, the one under a name that tells of it."""
        directory = self.model.root.children.get(key)
        if not isinstance(directory, Directory) or directory.stored is None or not directory.dirty:
            return
        mine = directory.files()
        changed = [name for name, file in mine.items() if file.staged and file.own]
        if (
            not changed
            or not (directory.lasting() and directory.differs(lasting=True))
            or self.model.has_writers(directory)
        ):
            return  # without anything to be stored, nothing is in conflict with what is
        self._elsewhere(key, self._samples(number))

        def model() -> None:
            raise Fails(errno.ESTALE)

        self._try(lambda: self.system.fsync_directory(key), model)
        aside = [name for name in self.system.listdir("") if name.startswith(f"{key}.conflict-")]
        if len(aside) != 1:
            raise Difference(f"what was set aside: {aside}")
        self._check_aside(aside[0], mine, changed)
        for file in mine.values():
            file.frozen = True
        self._wait_for(key)

    def _check_aside(self, aside: str, mine: dict[str, File], changed: list[str]) -> None:
        names = self.system.listdir(aside)
        if not set(changed) <= set(names) <= set(mine):
            raise Difference(f"set aside are {names}, changed were {changed}")
        for name in names:
            if name in changed:
                data = self._content(f"{aside}/{name}")
                if data != mine[name].data:
                    raise Difference(f"{aside}/{name}: {_short(data)}, expected {_short(mine[name].data)}")
            self.system.unlink(f"{aside}/{name}")
        self.system.rmdir(aside)

    def _check_stored(self, key: str, files: dict[str, bytes]) -> None:
        """What the library reads."""
        expected: dict[int, dict[str, object]] = {}
        for name, data in files.items():
            stem, field, *_ = name.split(".")
            number = expected.setdefault(int(stem), {})
            number.update({"n": int(data[6:-2])} if field == "json" else {field: data})
        found = list(open_store(self.system.store).get(key))
        if found != [expected[number] for number in sorted(expected)]:
            raise Difference(f"the store's {key} is {_short(found)}, expected {_short(expected)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:200]} ... {text[-200:]} ({len(text)} characters)"


__all__ = ["TEMPORARY", "Difference", "Player", "sealed"]
