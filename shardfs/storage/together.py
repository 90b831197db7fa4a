"""Several files of one directory replaced, added and removed as one step, as far as a crash goes.

No file system does that by itself. So all is written beside its name first, then a plan of what gets which name, and
then the plan is carried out, which may be done any number of times. A plan counts from when it has a second name:
whoever finds one of those, because its writer died or his disk failed, first carries it out to its end. Who reads the
directory meanwhile sees some files before others. Knows nothing of what the files mean.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable

from shardfs.errors import ShardfsError, StorageError
from shardfs.storage import renaming
from shardfs.storage.local import TEMPORARY, LocalStorage

_READY = "-ready"
"""Ends the name of a plan that counts."""
_LEFT = re.compile(re.escape(TEMPORARY) + r"([0-9a-f]{16})" + _READY)

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def token() -> str:
    """What one such step is called by, so that it can be settled later."""
    return secrets.token_hex(8)


def change(
    storage: LocalStorage,
    directory: str,
    name: str,
    put: Iterable[tuple[str, bytes]],
    gone: Iterable[str],
    *,
    check: Callable[[], None],
    ready: Callable[[], None],
) -> None:
    """Have the files `put` (name and content) in `directory`, and those `gone` no longer, durably; `name` is what
    `token` made.

    `check` is called when all is written, and `ready` behind it: from then on the step will be made, at the latest by
    `settle`, which is also for a `ready` that raised; until then nothing has changed, whatever is raised. StorageError,
    and what the three raise.
    """
    with storage.directory(directory, make=True) as descriptor:
        try:
            plan = _write_all(descriptor, name, put, list(gone))
            with renaming.locked(descriptor):
                try:
                    _end_others(descriptor)  # or they would be made later, over what is written now
                    check()
                except BaseException:
                    _clean(descriptor, name)
                    raise
                os.rename(TEMPORARY + name, _ready(name), src_dir_fd=descriptor, dst_dir_fd=descriptor)
                os.fsync(descriptor)
                ready()
                _carry_out(descriptor, name, plan)
                return
        except ShardfsError:  # of what the three raised; some are OSErrors, too
            raise
        except OSError as error:
            text = f"writing into {storage.root / directory}: {error.strerror or error}"
            raise StorageError(text, error.errno or errno.EIO) from error


def settle(storage: LocalStorage, directory: str, name: str, ready: bool) -> bool:
    """Make the end of a step that was left: all of it if it was `ready`, as far as that was heard, or its plan counts;
    nothing of it if not. Whether it was made, or had been, by whomever. StorageError."""
    try:
        with storage.directory(directory) as descriptor, renaming.locked(descriptor):
            plan = _plan(descriptor, _ready(name))
            if plan is None and ready:
                plan = _plan(descriptor, TEMPORARY + name)  # as it was called before plans had two names
            if plan is not None:
                _carry_out(descriptor, name, plan)
                return True
            if ready:
                os.fsync(descriptor)
            else:
                _clean(descriptor, name)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        if isinstance(error, StorageError):
            raise
        text = f"settling {storage.root / directory}: {error.strerror or error}"
        raise StorageError(text, error.errno or errno.EIO) from error
    return ready


Plan = dict[str, list[str]]
"""`put` are names, in the order of the files written for them, and `gone` names."""


def _write_all(descriptor: int, name: str, put: Iterable[tuple[str, bytes]], gone: list[str]) -> Plan:
    plan: Plan = {"put": [], "gone": gone}
    try:
        for number, (target, data) in enumerate(put):
            _write(descriptor, _part(name, number), data)
            plan["put"].append(target)
        _write(descriptor, TEMPORARY + name, json.dumps(plan).encode("ascii"))
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):  # what failed is what the caller is told, and not this
            _clean(descriptor, name)
        raise
    return plan


def _ready(name: str) -> str:
    return f"{TEMPORARY}{name}{_READY}"


def _end_others(descriptor: int) -> None:
    """Carry out whatever plans count. Their writers hold the lock for as long as they are at it themselves."""
    for entry in sorted(os.listdir(descriptor)):
        left = _LEFT.fullmatch(entry)
        if left is not None and (plan := _plan(descriptor, entry)) is not None:
            _carry_out(descriptor, left[1], plan)


def _part(name: str, number: int) -> str:
    return f"{TEMPORARY}{name}-{number}"


def _write(descriptor: int, name: str, data: bytes) -> None:
    with open(os.open(name, _NEW, 0o666, dir_fd=descriptor), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _plan(descriptor: int, file: str) -> Plan | None:
    try:
        opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
    except FileNotFoundError:
        return None
    with open(opened, "rb") as held:
        plan: Plan = json.loads(held.read())
    return plan


def _carry_out(descriptor: int, name: str, plan: Plan) -> None:
    for number, target in enumerate(plan["put"]):
        with contextlib.suppress(FileNotFoundError):  # it has its name already
            os.rename(_part(name, number), target, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    for target in plan["gone"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target, dir_fd=descriptor)
    os.fsync(descriptor)
    for file in (_ready(name), TEMPORARY + name):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file, dir_fd=descriptor)


def _clean(descriptor: int, name: str) -> None:
    for entry in os.listdir(descriptor):
        if entry == TEMPORARY + name or entry.startswith(f"{TEMPORARY}{name}-"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry, dir_fd=descriptor)
