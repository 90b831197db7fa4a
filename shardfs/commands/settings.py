"""Every setting of a mount, once: what the command line, `-o`, the environment, the configuration file, the documents
and `shardfs config` say of settings all comes from this table. Knows nothing of where one was said, nor of what is done
with it.

A new setting is a row here. Its flag (`--cache-dir`), its word for `-o` (`cache_dir=`), its variable
(`SHARDFS_CACHE_DIR`) and its name in the file (`cache_dir`) follow from its name; the command finds its value, as
`parse` made it, in `arguments.cache_dir`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shardfs.commands.options import (
    parse_deadline,
    parse_disk_size,
    parse_path,
    parse_patterns,
    parse_refresh,
    parse_shutdown_timeout,
    parse_size,
    parse_view,
    parse_write_back,
)

FAR = "stores far away"
BUCKETS = "s3://, gs:// and az://"
KEEPING = "stores far away, and with cache_raw"
"""What stores a setting `is_for`, in words."""


class Setting(NamedTuple):
    """One setting. Without a metavar it is a switch, with a `--no-...` (and `no_...`) to turn it off."""

    name: str
    help: str
    """As `--help` has it: a percent sign twice."""
    metavar: str | None = None
    parse: Callable[[str], Any] = str
    """Its value for what was said of it. BadSettingError, without naming the setting."""
    default: Any = None
    """Its value where nothing was said; None where that depends on the machine or the store."""
    unsaid: str = ""
    """The default in words, where `default` does not say it."""
    choices: tuple[str, ...] = ()
    needs: str = ""
    """A switch without which it makes no sense."""
    against: str = ""
    """A switch, or `name=text`, with which it makes no sense, unless it is `off` itself."""
    is_for: str = ""
    """The only stores of which it says something; empty: all."""
    many: bool = False
    """Its flag may be given several times; elsewhere there is white space between the parts."""
    off: str = ""
    """The word of `-o` that turns a switch off, if that is not `no_` and its name."""

    @property
    def switch(self) -> bool:
        return self.metavar is None and not self.choices

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def words(self) -> tuple[str, ...]:
        """What `-o` has of it."""
        return (self.name, self.off or f"no_{self.name}") if self.switch else (f"{self.name}=",)


PREFIX = "SHARDFS_"

OTHER_VARIABLES = frozenset(
    PREFIX + name
    for name in (
        *("STOCK_LOOP", "STOCK_LISTING", "STOCK_OPEN", "NO_SPIN", "NO_READ_AHEAD", "NO_PARTS"),  # for comparing
        *("NO_PREFILL",),
        *("ALL_FEATURES", "FAULTS", "KILLS", "KILLS_SEED", "LONG_FAULTS", "MODEL_SEED", "NO_FUSE", "SEAL_KILLS"),
        *("STAGING_KILLS", "STAGING_RUNS", "TESTS_FAR", "TEST_COUNTER", "UPDATE_GOLDEN", "WRITING_RUNS"),  # of tests
        *("INTEROP_LOADERS", "INTEROP_MLTRAQ", "INTEROP_SQUIRREL", "INTEROP_STREAMING", "INTEROP_TABLES"),
        *("INTEROP_SUPERDUPER", "INTEROP_SUPERDUPER3"),
    )
)
"""Variables that are no settings, and no mistakes either."""

PRESETS = {
    "browse": {"memory": "10%"},
    "train": {
        **{"memory": "50%", "arrays": "npy", "refresh": "immutable", "cache_raw": "always", "deadline": "300"},
    },
    "export": {
        **{"memory": "10%", "arrays": "npy", "refresh": "immutable", "cache_raw": "off", "deadline": "300"},
    },
}
"""What a profile says of other settings; docs/OPERATIONS.md has the reasons."""

SHOWING = (
    Setting(
        "driver", "what kind of store it is, where that is unclear", "NAME", unsaid="what the store's content says"
    ),
    Setting(
        "arrays",
        "show arrays that look like images as .png (default) or as .npy",
        choices=("png", "npy"),
        default="png",
    ),
    Setting(
        "text",
        "show text fields in the .json (default) or as .txt files",
        choices=("json", "files"),
        default="json",
    ),
    Setting(
        "profile",
        "settings that fit looking around, training from it, or copying it out; what is said besides counts more",
        choices=tuple(PRESETS),
        unsaid="none",
    ),
)

CACHE_PLACE = (
    Setting(
        "cache_dir",
        "where shards from far away are kept (default: $XDG_CACHE_HOME/shardfs)",
        "DIR",
        parse_path,
        unsaid="`$XDG_CACHE_HOME/shardfs/shards`",
        is_for=KEEPING,
    ),
    Setting(
        "cache_size",
        "how much of them: bytes, 100G, 20%% of that disk, or 0 (default: 10%%)",
        "SIZE",
        parse_disk_size,
        unsaid="10% of that disk",
        is_for=KEEPING,
    ),
)

FAR_AWAY = (
    Setting("endpoint", "the server of an s3:// store that is not Amazon's", "URL", is_for=BUCKETS),
    Setting("anonymous", "ask a store far away without credentials", default=False, is_for=BUCKETS),
    Setting(
        "deadline",
        "what is asked of a store far away ends after so long (default: 60)",
        "SECONDS",
        parse_deadline,
        unsaid="60",
        is_for=FAR,
    ),
    Setting("offline", "ask nothing of it: what is known and cached must do", default=False, is_for=FAR),
    *CACHE_PLACE,
    Setting(
        "min_free",
        "disk that the cache leaves free (default: 1G)",
        "SIZE",
        parse_disk_size,
        unsaid="1G",
        is_for=KEEPING,
    ),
)

_SINGLE = "write to a store far away that cannot compare versions, as nobody else does"

WRITING = (
    Setting("rw", "let new keys be made, and samples be edited and added", default=False, off="ro"),
    Setting("allow_overwrite", "with --rw: let a renamed directory replace a stored key", default=False, needs="rw"),
    Setting("allow_delete", "with --rw: let stored files and keys be removed", default=False, needs="rw"),
    Setting("single_writer", f"with --rw: {_SINGLE}", default=False, needs="rw"),
    Setting(
        "write_back",
        "with --rw: store a key after so many quiet seconds (default: 5; off: only when it is asked for)",
        "SECONDS",
        parse_write_back,
        default=5.0,
        needs="rw",
    ),
    Setting(
        "size_limit",
        "with --rw, for data sets of MosaicML Streaming: split a larger new key into several (64mb)",
        "SIZE",
        unsaid="no limit",
        needs="rw",
    ),
    Setting(
        "shutdown_timeout",
        "with --rw: the end of the mount waits so long for what was written to be stored (default: 30); the rest "
        "stays staged",
        "SECONDS",
        parse_shutdown_timeout,
        unsaid="30",
        needs="rw",
    ),
)

SERVING = (
    Setting(
        "memory",
        "memory for loaded shards: bytes, 500M, 2G, 1.5GiB or 25%% of the memory there is (default: 25%%)",
        "SIZE",
        parse_size,
        unsaid="25%",
    ),
    Setting("index", "keep what shards hold for the next mount (default)", default=True),
    Setting("allow_other", "let other users in, as file modes permit", default=False),
    Setting("nonempty", "hide what is in MNT, where that is not empty", default=False),
    Setting(
        "refresh",
        "look for change in the store so often (default: 1, far away 60), or immutable: never, "
        "or manual: by shardfs refresh",
        "SECONDS",
        parse_refresh,
        unsaid="1, far away 60",
    ),
    Setting(
        "cache_raw",
        "keep gzip and bzip2 shards decompressed in the cache on disk: always, again (those that had to be loaded "
        "again; default far away) or off (default on this machine)",
        choices=("again", "always", "off"),
        unsaid="`off`, far away `again`",
        against="cache_size=0",
    ),
    Setting(
        "snapshot",
        "just the keys and versions in FILE, as `shardfs info --snapshot` writes it",
        "FILE",
        parse_path,
        unsaid="none",
        against="rw",
    ),
    Setting(
        "view",
        "show the samples in another shape: by:FIELD[,FIELD] (a directory for each value), flat, tree, hf, yolo, wds "
        "or raw; all of them are in MNT/.shardfs/views in any case",
        "VIEW",
        parse_view,
        unsaid="a directory for each key",
        against="rw",
    ),
    Setting(
        "field",
        "which heavy field views show, where samples have several (default: the first picture)",
        "NAME",
        unsaid="the first picture",
    ),
    Setting(
        "metrics_addr",
        "serve metrics for Prometheus over HTTP there (a port alone: to this machine only); they are in "
        "MNT/.shardfs/metrics in any case",
        "HOST:PORT",
        unsaid="not served",
    ),
    Setting("xattr", "tell extended attributes, user.shardfs.*, of each file", default=False),
    Setting(
        "trace",
        "write what is asked of the mount to FILE, 256 MiB at most",
        "FILE",
        parse_path,
        unsaid="none",
    ),
    Setting(
        "log",
        "append the log to FILE (default: $XDG_STATE_HOME/shardfs/)",
        "FILE",
        parse_path,
        unsaid="a file in `$XDG_STATE_HOME/shardfs/`; with `-f` standard error",
    ),
    Setting("log_format", "lines of the log for people, or as JSON", choices=("plain", "json"), default="plain"),
    Setting(
        "log_level",
        "log what is at least so serious (-v: info, -vv: debug)",
        choices=("debug", "info", "warning", "error"),
        default="warning",
    ),
)

FILTERING = (
    Setting(
        "keys",
        "show only keys that fit a GLOB, whose * takes / too; may be given several times",
        "GLOB",
        parse_patterns,
        unsaid="all keys",
        against="rw",
        many=True,
    ),
    Setting(
        "where",
        "show only samples for which EXPR is true: SQL over light fields, like label = 'cat'",
        "EXPR",
        unsaid="all samples",
        against="rw",
    ),
)

OPENING = (*SHOWING, *FAR_AWAY)
"""What every command takes that opens a store."""

SETTINGS = (*OPENING, *FILTERING, *SERVING, *WRITING)
"""What a mount takes."""

BY_NAME = {setting.name: setting for setting in SETTINGS}


class _Joined(argparse.Action):
    """What was given several times, with white space between."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before} {values}")


def add_settings(parser: argparse.ArgumentParser, settings: Sequence[Setting]) -> None:
    """Have a command take these settings: as flags, and wherever else they may be said."""
    for setting in settings:
        if setting.switch:
            parser.add_argument(
                setting.flag, dest=setting.name, action=argparse.BooleanOptionalAction, default=None, help=setting.help
            )
        else:
            parser.add_argument(
                setting.flag,
                metavar=setting.metavar,
                choices=setting.choices or None,
                action=_Joined if setting.many else "store",
                help=setting.help,
            )
    before = parser.get_default("settings") or ()
    parser.set_defaults(settings=(*before, *(setting.name for setting in settings)))
