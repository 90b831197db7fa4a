"""What of this machine keeps mounts from working, or makes them slow, and how each is mended. Changes nothing.

Every check answers by itself, whatever the others found. Knows nothing of what is printed; stores are looked at in
`examining_store`.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import importlib.util
import os
import re
import resource
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shardfs import config, daemon
from shardfs.errors import ShardfsError
from shardfs.staging.area import default_root
from shardfs.storage.disk_cache import default_directory

OK, NOTE, WARNING, FAILURE = "ok", "note", "warning", "failure"
"""As it should be; so for who needs it only; works, and something is the worse for it; mounts cannot work."""

EXTRAS = {
    "images": ("PIL", "to give pictures of MDS `pil` columns to Python"),
    "hashes": ("xxhash", "to check xxh* hashes of Streaming's shards"),
    "fast": ("isal", "to read gzip twice as fast"),
    "catalog": ("yaml", "to read squirrel-core's catalogs"),
    "remote": ("obstore", "for stores far away"),
    "codecs": ("brotli", "for Streaming's br and snappy shards"),
    "mongodb": ("pymongo", "for Superduper's collections"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    level: str
    text: str
    fix: str | None = None
    """What to do, as a command where there is one."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where this machine says what is asked."""

    device: str = "/dev/fuse"
    fuse_conf: str = "/etc/fuse.conf"
    updatedb_conf: str = "/etc/updatedb.conf"
    status: str = "/proc/self/status"
    cache: Path | None = None
    """Where stored shards from far away are to be kept; None: where they are by default."""
    min_free: int = config.CACHE_MIN_FREE
    clock: Callable[[], float] = time.time


def examine(places: Places) -> Iterator[Finding]:
    """All checks of the machine."""
    for check in (
        _kernel,
        _device,
        _helper,
        _allow_other,
        _memory,
        _descriptors,
        _cache_space,
        _staging_space,
        _runtime,
        _clock,
        _stale_mounts,
        _updatedb,
        _python,
        _extras,
    ):
        yield from check(places)


def _kernel(places: Places) -> Iterator[Finding]:
    name = os.uname()
    found = re.match(r"(\d+)\.(\d+)", name.release)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if name.sysname != "Linux":
        yield Finding("kernel", FAILURE, f"{name.sysname} has no FUSE as Linux has it", "mount on Linux")
    elif version < config.KERNEL_MIN:
        least = ".".join(map(str, config.KERNEL_MIN))
        yield Finding("kernel", WARNING, f"Linux {name.release} is older than {least}", f"use a kernel from {least} on")
    else:
        yield Finding("kernel", OK, f"Linux {name.release}")


def _device(places: Places) -> Iterator[Finding]:
    container = "in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
    try:
        descriptor = os.open(places.device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        device = os.fstat(descriptor)
        os.close(descriptor)
    except FileNotFoundError:
        yield Finding("fuse", FAILURE, f"{places.device} is missing", f"modprobe fuse; {container}")
        return
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        fix = f"chmod 666 {places.device} as root; {container}"
        yield Finding("fuse", FAILURE, f"{places.device} cannot be opened: {reason}", fix)
        return
    if os.geteuid() == 0 and not _may_mount(places):
        yield Finding("fuse", FAILURE, "root lacks the right to mount here (CAP_SYS_ADMIN)", container)
        return
    if not stat.S_ISCHR(device.st_mode) or device.st_rdev != os.makedev(*config.FUSE_DEVICE):
        fix = f"rm {places.device}; mknod {places.device} c 10 229; chmod 666 {places.device} as root; {container}"
        yield Finding("fuse", FAILURE, f"{places.device} is something else than the device of FUSE", fix)
        return
    yield Finding("fuse", OK, f"{places.device} can be opened")


def _may_mount(places: Places) -> bool:
    try:
        text = Path(places.status).read_text(encoding="utf-8")
    except OSError:
        return True
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", text, re.MULTILINE)
    return found is None or bool(int(found[1], 16) >> 21 & 1)


def _helper(places: Places) -> Iterator[Finding]:
    level = FAILURE if os.geteuid() else WARNING
    path = shutil.which("fusermount3")
    if path is None:
        text = "fusermount3 is not in PATH: " + ("users cannot mount" if os.geteuid() else "only root can mount")
        yield Finding("fusermount3", level, text, "apt install fuse3 (or the distribution's package fuse3)")
        return
    found = os.stat(path)
    if not (found.st_mode & stat.S_ISUID and found.st_uid == 0):
        fix = f"chown root {shlex.quote(path)} && chmod u+s {shlex.quote(path)} as root, or reinstall fuse3"
        yield Finding("fusermount3", level, f"{path} does not run as root, so users cannot mount", fix)
        return
    yield Finding("fusermount3", OK, path)


def _allow_other(places: Places) -> Iterator[Finding]:
    try:
        lines = Path(places.fuse_conf).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        yield Finding("allow_other", OK, f"{places.fuse_conf} lets users give --allow-other")
    else:
        fix = f"echo user_allow_other >> {places.fuse_conf} as root"
        yield Finding("allow_other", NOTE, f"users cannot give --allow-other: {places.fuse_conf} does not say so", fix)


def _memory(places: Places) -> Iterator[Finding]:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ours, budget = config.memory_available(), config.default_budget()
    limited = f", of {whole >> 20} MiB: the cgroup has a limit" if ours < whole else ""
    text = f"{ours >> 20} MiB{limited}; loaded shards take {budget >> 20} MiB by default"
    if ours < config.MEMORY_LOW:
        yield Finding("memory", WARNING, text, "give the container or machine more, or mount with a small --memory")
    else:
        yield Finding("memory", OK, text)


def _descriptors(places: Places) -> Iterator[Finding]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < config.DESCRIPTORS:
        fix = f"ulimit -Hn {config.DESCRIPTORS} as root, or LimitNOFILE={config.DESCRIPTORS} in the unit"
        yield Finding("descriptors", WARNING, f"a process may open {hard} files only", fix)
    else:
        yield Finding("descriptors", OK, f"a process may open {'any number of' if hard < 0 else hard} files")


def _cache_space(places: Places) -> Iterator[Finding]:
    directory = places.cache or default_directory()
    if directory is None:
        fix = "set HOME or XDG_CACHE_HOME, or give --cache-dir"
        yield Finding("cache", WARNING, "there is no home to keep shards from far away in", fix)
        return
    fix = "free some, or give --cache-dir on another disk"
    yield _space("cache", directory, places.min_free, "nothing from far away is kept", fix)


def _staging_space(places: Places) -> Iterator[Finding]:
    try:
        directory = default_root()
    except ShardfsError as error:
        yield Finding("staging", WARNING, str(error), "set HOME or XDG_STATE_HOME")
        return
    fix = "free some, or set XDG_STATE_HOME to a directory on another disk"
    yield _space("staging", directory, config.STAGING_LOW, "little can be written to mounts", fix)


def _space(check: str, directory: Path, least: int, otherwise: str, fix: str) -> Finding:
    place = directory.absolute()
    try:
        while not place.exists():
            place = place.parent
        found = os.statvfs(place)
    except OSError as error:
        return Finding(check, WARNING, f"{place}: {os.strerror(error.errno or errno.EIO)}: {otherwise}", fix)
    free = found.f_bavail * found.f_frsize
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        return Finding(check, WARNING, f"{place} cannot be written to: {otherwise}", f"chown it to this user, or {fix}")
    if free < least:
        return Finding(check, WARNING, f"{free >> 20} MiB are free at {place}, below {least >> 20}: {otherwise}", fix)
    return Finding(check, OK, f"{free >> 20} MiB are free at {place}")


def _runtime(places: Places) -> Iterator[Finding]:
    uid = os.geteuid()
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    for directory in (*([given] if given.startswith("/") else []), f"/run/user/{uid}", "/tmp"):
        if os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            yield Finding("runtime", OK, f"sockets of mounts go to {directory}")
            return
    fix = "set XDG_RUNTIME_DIR to a directory of this user's own"
    yield Finding("runtime", WARNING, "there is no place for sockets: commands will not reach mounts", fix)


def _clock(places: Places) -> Iterator[Finding]:
    now = places.clock()
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < config.CLOCK_FLOOR:
        fix = "timedatectl set-ntp true (or set the clock)"
        yield Finding("clock", WARNING, f"it says {text}: stores far away refuse that", fix)
    else:
        yield Finding("clock", OK, f"it says {text}")


def _stale_mounts(places: Places) -> Iterator[Finding]:
    ours = [one for one in daemon.mounts() if one.fstype == daemon.FSTYPE and os.geteuid() in (0, one.owner)]
    bad = 0
    for mounted in ours:
        trouble = daemon.trouble(mounted.path, config.CONTROL_STATUS)
        if trouble:
            dead, bad = trouble in map(os.strerror, (errno.ENOTCONN, errno.ECONNABORTED)), bad + 1
            text = "its process has died" if dead else trouble
            fix = f"shardfs umount {'' if dead else '--lazy '}{shlex.quote(mounted.path)}"
            yield Finding("mounts", WARNING, f"{mounted.path}: {text}", fix)
    if not bad:
        yield Finding("mounts", OK, f"{len(ours)} can be seen, and all of them answer")


def _updatedb(places: Places) -> Iterator[Finding]:
    try:
        text = Path(places.updatedb_conf).read_text(encoding="utf-8", errors="replace")
    except OSError:
        yield Finding("updatedb", OK, "no updatedb looks through mounts")
        return
    found = re.search(r"""^\s*PRUNEFS\s*=\s*["']?([^"'\n]*)""", text, re.MULTILINE)
    if found is not None and daemon.FSTYPE in found[1].lower().split():
        yield Finding("updatedb", OK, f"{places.updatedb_conf} leaves mounts out")
        return
    where = shlex.quote(places.updatedb_conf)
    if found is None:
        fix = f"echo 'PRUNEFS = \"{daemon.FSTYPE}\"' >> {where} as root"
    else:
        fix = f"sed -i 's/^\\s*PRUNEFS\\s*=\\s*\"/&{daemon.FSTYPE} /' {where} as root"
    yield Finding("updatedb", WARNING, "updatedb will read every shard of mounts that it may look into", fix)


def _python(places: Places) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    for module, package in (("pyfuse3", "pyfuse3"), ("trio", "trio")):
        try:
            importlib.import_module(module)
        except Exception as error:
            fix = f"apt install {config.DEBIAN_PACKAGES} as root, then pip install 'shardfs[mount]'"
            yield Finding("python", FAILURE, f"mounting needs {package}: {error or type(error).__name__}", fix)
            return
    found = importlib.metadata.version("pyfuse3")
    if found != config.PYFUSE3:
        text = f"pyfuse3 {found} is not {config.PYFUSE3}, the one that this was made for"
        yield Finding("python", WARNING, text, f"pip install pyfuse3=={config.PYFUSE3}")
        return
    yield Finding("python", OK, f"Python {version}, pyfuse3 {found}")


def _extras(places: Places) -> Iterator[Finding]:
    for extra, (module, what) in EXTRAS.items():
        try:
            there = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            yield Finding(extra, NOTE, f"{module} is not installed: it is {what}", f"pip install 'shardfs[{extra}]'")
        else:
            yield Finding(extra, OK, f"{module}, {what}")
