"""The model: directories as dicts, files as bytes, and what each operation must come to.

Says which errors an operation may end with (`Fails`), in the order in which the kernel and a mount look for them; and,
where it cannot say, takes what came of it (`happened`). Knows nothing of what it is compared with.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["way", "key", "plain", "inside"]
"""A directory that is none of a key (or leads to keys), a key, a plain one, and one within a plain one."""

TEMPORARY = ("note~", ".swp")


class Fails(Exception):
    """What an operation must end with: one of these errors."""

    def __init__(self, *codes: int) -> None:
        super().__init__(" or ".join(errno.errorcode[code] for code in codes))
        self.codes = codes


@dataclass(eq=False)
class File:
    data: bytes
    staged: bool = True
    """False as long as it is the store's: modes and times are no part of that."""
    own: bool = True
    """True once its bytes are not the stored shard's."""
    mode: int = 0o644
    mtime_ns: int | None = None
    """None where it is not known."""
    frozen: bool = False
    """True for one that a seal, or another program, has replaced by another of its name: who has it open reads what it
    was, or nothing."""


@dataclass(eq=False)
class Directory:
    kind: Kind
    children: dict[str, File | Directory] = field(default_factory=dict)
    stored: dict[str, bytes] | None = None
    """What the store has of a key."""
    overlaid: bool = False
    """True if something may be staged over what is stored."""
    dirty: bool = False
    """True if the next seal has something to do."""
    mode: int | None = None
    """None where it is not known."""
    removed: list[File] = field(default_factory=list)
    """Those that were removed while the stored shard had their bytes: its next version does not."""

    def files(self) -> dict[str, File]:
        return {name: node for name, node in self.children.items() if isinstance(node, File)}

    def lasting(self) -> dict[str, File]:
        """What a shard is made of."""
        return {name: node for name, node in self.files().items() if name not in TEMPORARY}

    def differs(self, lasting: bool = False) -> bool:
        """Whether anything is staged over what is stored: what was made and removed again is not. `lasting`: anything
        that a shard is made of."""
        gone = any(name not in self.children for name in self.stored or ())
        return gone or any(file.staged for file in (self.lasting() if lasting else self.files()).values())

    def remove(self, name: str) -> None:
        file = self.children.pop(name)
        if isinstance(file, File) and not file.own:
            self.removed.append(file)

    def replaced(self) -> None:
        """The store has another version of it, or none any more."""
        for file in (*self.lasting().values(), *self.removed):
            file.frozen = True
        self.removed = []

    def below(self) -> Iterator[File]:
        """All files in it and in its directories."""
        for node in self.children.values():
            if isinstance(node, File):
                yield node
            else:
                yield from node.below()


@dataclass(eq=False)
class Handle:
    file: File
    writing: bool
    appending: bool


def is_plain(name: str) -> bool:
    return name.startswith(".") or name.endswith((".tmp", ".partial"))


class Model:
    """The whole mount."""

    def __init__(self) -> None:
        self.root = Directory("way")
        self.handles: dict[int, Handle] = {}
        self.happened = 0
        """The error that the operation ended with which is asked about, or 0."""

    # --- finding ------------------------------------------------------------------------------------------------

    def find(self, path: str) -> File | Directory:
        node: File | Directory = self.root
        for part in filter(None, path.split("/")):
            if isinstance(node, File):
                raise Fails(errno.ENOTDIR)
            if part not in node.children:
                raise Fails(errno.ENOENT)
            node = node.children[part]
        return node

    def split(self, path: str) -> tuple[Directory, str]:
        above, _, name = path.rpartition("/")
        found = self.find(above)
        if isinstance(found, File):
            raise Fails(errno.ENOTDIR)
        return found, name

    def directory(self, path: str) -> Directory:
        found = self.find(path)
        if isinstance(found, File):
            raise Fails(errno.ENOTDIR)
        return found

    def file(self, path: str) -> File:
        found = self.find(path)
        if isinstance(found, Directory):
            raise Fails(errno.EISDIR)
        return found

    def has_writers(self, directory: Directory) -> bool:
        files = set(directory.below())
        return any(handle.writing and handle.file in files for handle in self.handles.values())

    def all_keys(self, directory: Directory | None = None, path: str = "") -> Iterator[tuple[str, Directory]]:
        for name, node in sorted((directory or self.root).children.items()):
            if isinstance(node, Directory):
                if node.kind == "key":
                    yield path + name, node
                elif node.kind == "way":
                    yield from self.all_keys(node, f"{path}{name}/")

    # --- files --------------------------------------------------------------------------------------------------

    def _changed(self, path: str, file: File) -> None:
        file.mtime_ns = None
        above, _ = self.split(path)
        self.taken(above, file)

    def taken(self, above: Directory, file: File) -> None:
        """It is staged from now on, with its bytes."""
        if above.kind == "key":
            above.overlaid = True
            above.dirty |= file not in (above.children.get(name) for name in TEMPORARY)
        if not file.staged:
            file.mode, file.mtime_ns = 0o644, None
        file.staged = file.own = True

    def create(self, path: str, exclusive: bool, mode: int) -> File:
        """The file of that name, made if need be."""
        above, name = self.split(path)
        there = above.children.get(name)
        if there is not None:
            if exclusive:
                raise Fails(errno.EEXIST)
            if isinstance(there, Directory):
                raise Fails(errno.EISDIR)
            return there
        if above.kind == "way":
            if above is self.root or above.children:
                raise Fails(errno.EPERM)
            above.kind = "key"
        made = above.children[name] = File(b"", mode=mode)
        self.taken(above, made)
        return made

    def write(self, path: str, data: bytes, offset: int | None) -> None:
        """None: at the end."""
        file = self.file(path)
        self._put(file, data, len(file.data) if offset is None else offset)
        self._changed(path, file)

    def _put(self, file: File, data: bytes, offset: int) -> None:
        if data:
            before = file.data.ljust(offset, b"\0")
            file.data = before[:offset] + data + before[offset + len(data) :]
            file.mtime_ns = None

    def truncate(self, path: str, size: int) -> None:
        file = self.file(path)
        file.data = file.data[:size].ljust(size, b"\0")
        self._changed(path, file)

    def opened(self, slot: int, path: str, writing: bool, appending: bool) -> None:
        file = self.file(path)
        if writing:
            self.taken(self.split(path)[0], file)
        self.handles[slot] = Handle(file, writing, appending)

    def put(self, slot: int, data: bytes, offset: int) -> None:
        handle = self.handles[slot]
        if not handle.writing:
            raise Fails(errno.EBADF)
        self._put(handle.file, data, len(handle.file.data) if handle.appending else offset)

    def resize(self, slot: int, size: int) -> None:
        handle = self.handles[slot]
        if not handle.writing:
            raise Fails(errno.EINVAL)
        handle.file.data = handle.file.data[:size].ljust(size, b"\0")
        handle.file.mtime_ns = None

    # --- names --------------------------------------------------------------------------------------------------

    def mkdir(self, path: str) -> None:
        above, name = self.split(path)
        if name in above.children:
            raise Fails(errno.EEXIST)
        if above.kind == "key":
            raise Fails(errno.EPERM)
        kind: Kind = "inside" if above.kind in ("plain", "inside") else "plain" if is_plain(name) else "way"
        above.children[name] = Directory(kind, mode=None if kind == "way" else 0o755)

    def unlink(self, path: str) -> None:
        above, name = self.split(path)
        self.file(path)
        above.remove(name)
        if above.kind == "key":
            above.overlaid = True
            above.dirty |= name not in TEMPORARY

    def rmdir(self, path: str) -> None:
        above, name = self.split(path)
        found = self.directory(path)
        if found.children:
            raise Fails(errno.ENOTEMPTY)
        found.replaced()
        del above.children[name]

    def chmod(self, path: str, mode: int) -> None:
        found = self.find(path)
        if isinstance(found, File):
            if found.staged:
                found.mode = mode
        elif found.kind in ("plain", "inside"):
            found.mode = mode

    def set_time(self, path: str, mtime_ns: int) -> None:
        found = self.find(path)
        if isinstance(found, File) and found.staged:
            found.mtime_ns = mtime_ns

    # --- the store ----------------------------------------------------------------------------------------------

    def seal(self, key: Directory) -> None:
        if self.has_writers(key):
            raise Fails(errno.EBUSY)
        if not key.dirty or not key.lasting():
            return
        self.check_samples(key)
        made = sealed({name: file.data for name, file in key.lasting().items()})
        left = {name: node for name, node in key.files().items() if name in TEMPORARY}
        key.replaced()
        self.show(key, made, left)

    def show(self, key: Directory, stored: dict[str, bytes], left: dict[str, File]) -> None:
        """The store has another version, over which this is left."""
        key.stored, key.dirty, key.overlaid, key.mode = stored, False, bool(left), None
        key.children = {name: File(data, staged=False, own=False) for name, data in stored.items()}
        key.children.update(left)

    @staticmethod
    def check_samples(key: Directory) -> None:
        for name, file in key.lasting().items():
            if name.endswith(".json"):
                light(file.data)


def light(data: bytes) -> bytes:
    """A `.json` as it is shown once it is stored."""
    try:
        value = json.loads(data)
    except ValueError:
        raise Fails(errno.EINVAL) from None
    assert isinstance(value, dict)
    return json.dumps(value).encode() + b"\n"


def sealed(files: dict[str, bytes]) -> dict[str, bytes]:
    """What a seal makes of a key's files: samples have numbers from 0 on."""
    stems = sorted({name.partition(".")[0] for name in files})
    made = {}
    for name, data in files.items():
        stem, _, suffix = name.partition(".")
        made[f"{stems.index(stem):06d}.{suffix}"] = light(data) if suffix == "json" else data
    return made
