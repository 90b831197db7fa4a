"""Writing into a Superduper store: artifacts under names made of their content, and rows that refer to them.

Artifacts come first and a row last, so that nothing ever refers to what is not there. Each artifact appears whole or
not at all; one that is there is never written over or removed. Knows nothing of rows. Where artifacts lie is what
superduperdb 0.2 and superduper-framework 0.3 and 0.10 read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shardfs import config
from shardfs.drivers.superduper_artifacts import BLOB, FILE
from shardfs.drivers.superduper_types import Layout
from shardfs.errors import BadSettingError, DamagedShardError, StorageError
from shardfs.storage.local import LocalStorage, temporary_name
from shardfs.storage.local_reader import reason

_OPEN = 0o777
"""Mode of artifacts from 0.4 on, as the library gives it to them."""


def put_bytes(storage: LocalStorage, data: bytes, layout: Layout) -> str:
    """Store a blob, durably, unless the store has it; a reference to it. DamagedShardError where something else has its
    name; StorageError."""
    made = hashlib.sha1(data, usedforsecurity=False) if layout.hashed else hashlib.sha256(data)
    name = made.hexdigest()

    def write(file: BinaryIO) -> None:
        file.write(data)
        if layout.open:
            os.fchmod(file.fileno(), _OPEN)

    try:
        storage.put(name, write, replace=False)
    except StorageError as error:
        if not isinstance(error.__cause__, FileExistsError) and not os.path.lexists(storage.root / name):
            raise
        if storage.read(name, max(len(data), 1)) != data:
            raise DamagedShardError(f"{name} in {storage.root} is not what its name is the hash of") from error
    return BLOB + name


def put_file(storage: LocalStorage, path: Path, layout: Layout) -> str:
    """Store a copy of a file or of a directory with all in it, durably, unless the store has it; a reference to it.

    Its name is made of its content, so what was changed is another artifact. Symbolic links are followed, as
    Superduper does. BadSettingError for a name that the library could not find again; StorageError.
    """
    path = path.absolute()
    name = path.name
    if not name:
        raise BadSettingError(f"{path} has no name to be stored under")
    if layout.mangled and "__" in name:
        raise BadSettingError(f"{name}: up to release 0.3 a name with __ in it is not found again: rename it")
    temporary = temporary_name()
    folder = storage.root / temporary
    try:
        storage.make_directory("")
        folder.mkdir()
        _copy(path, folder / name)
        made = hashlib.sha1(usedforsecurity=False) if layout.hashed else hashlib.sha256()
        for piece in _content(folder, name):
            made.update(piece)
        identifier = made.hexdigest()
        if layout.open:
            _open_up(folder)
        _sync(folder)
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            _rename_new(folder, storage.root / identifier)
        _sync_directory(storage.root)
    except (OSError, shutil.Error) as error:
        code = error.errno if isinstance(error, OSError) else None
        text = reason(error) if isinstance(error, OSError) else str(error)
        raise StorageError(f"storing {path}: {text}", code or 5) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"{FILE}{name.replace('.', '__')}:{identifier}" if layout.mangled else FILE + identifier


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        if not stat.S_ISREG(source.stat().st_mode):
            raise BadSettingError(f"{source} is neither a file nor a directory")
        shutil.copy2(source, target)


def _content(folder: Path, name: str) -> Iterator[bytes]:
    """What the name of an artifact is made of: each path in it, with what it is and its bytes."""
    path = folder / name
    relative = os.fsencode(path.relative_to(folder))
    if path.is_dir():
        yield b"d%d:%b" % (len(relative), relative)
        for below in sorted(os.listdir(path)):
            yield from _content(path, below)
        yield b"."
        return
    yield b"f%d:%b%d:" % (len(relative), relative, path.stat().st_size)
    with open(path, "rb") as file:
        while piece := file.read(config.COPY_SLICE):
            yield piece


def _open_up(folder: Path) -> None:
    """Modes as the library gives them."""
    os.chmod(folder, _OPEN)
    for where, _, files in os.walk(folder):
        os.chmod(where, _OPEN)
        for name in files:
            os.chmod(os.path.join(where, name), _OPEN)


def _sync(folder: Path) -> None:
    for where, _, files in os.walk(folder, topdown=False):
        for name in files:
            descriptor = os.open(os.path.join(where, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_directory(Path(where))


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_new(source: Path, target: Path) -> None:
    """Give a directory its name; FileExistsError if something has that. An empty directory, which a writer that died
    can leave, gives way."""
    try:
        os.rename(source, target)
    except OSError as error:
        if target.is_dir():
            raise FileExistsError(str(target)) from error
        raise
