"""The directory in which mltraq keeps what is not in its database, and the urls that lead into it.

    <datastore>/<prefix>/<name>        url `file:///<prefix>/<name>`

A prefix is the id of an experiment (with dashes), or any path that DataStoreIO was given. Source: what mltraq 0.1.165
writes and reads, found by running it. A url is no more than a name below the datastore here: whatever leads out of it,
by `..` or through a symbolic link, is refused. Knows nothing of what is in the files.
"""

from __future__ import annotations

import errno
import re
from urllib.parse import urlsplit

from shardfs.drivers.mltraq_datapak import UnresolvedError
from shardfs.errors import BadSettingError, StorageError
from shardfs.storage.base import Listed, Storage

URL = "file:///"
_ID = re.compile("[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}\\1[0-9a-fA-F]{4}\\1[0-9a-fA-F]{4}\\1[0-9a-fA-F]{12}")
_ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG))


def find(storage: Storage, url: str) -> Listed:
    """The file that a url means. UnresolvedError for what leads out of the datastore, and where there is none;
    StorageError."""
    if not url.startswith(URL):
        raise UnresolvedError(f"not a {URL} url")
    names = list(dict.fromkeys((url[len(URL) :], _as_parsed(url))))
    sound = [name for name in names if is_sound(name)]
    if not sound:
        raise UnresolvedError("it leads out of the datastore")
    for name in sound:
        try:
            return storage.stat(name)
        except StorageError as error:
            if error.errno not in _ABSENT:
                raise
    raise UnresolvedError("no such file in the datastore")


def _as_parsed(url: str) -> str:
    """What the library reads for a url: it writes `?` and `#` as they are and cuts them off when reading. Percent signs
    are what they are."""
    try:
        return urlsplit(url).path[1:]
    except ValueError:
        return url[len(URL) :]


def is_sound(name: str) -> bool:
    """True for a path that stays below where it begins."""
    return not {"", ".", ".."}.intersection(name.split("/")) and "\0" not in name


def check_prefix(prefix: str) -> str:
    """A directory of the datastore that files may be written into. BadSettingError for an experiment's, for what leads
    out of the datastore, and for what the library could not read again."""
    if not is_sound(prefix) or any(character in prefix for character in "?#"):
        raise BadSettingError(f"relative_path_prefix {prefix!r}: a path below the datastore, without ? and #")
    first = prefix.partition("/")[0]
    if is_experiment_id(first):
        text = f"relative_path_prefix {prefix!r} is the id of an experiment, whose directory mltraq wipes whenever"
        raise BadSettingError(f"{text} it persists the experiment: choose another, as self_managed/{first}")
    return prefix


def is_experiment_id(name: str) -> bool:
    return _ID.fullmatch(name) is not None


def directory_of(name: str) -> str:
    return name.rpartition("/")[0]


def prefix_of(id_experiment: str) -> str:
    """The directory of an experiment, whose id the database has without dashes."""
    digits = id_experiment
    if len(digits) != 32:
        return digits
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
