"""What the command line takes: every command with its description, arguments and options, as argparse has them.

Knows nothing of what commands do. Settings that several commands have come from their table, in `settings`.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

from shardfs.commands import EXIT_STATUS, USAGE, one_line, tell
from shardfs.commands.settings import (
    CACHE_PLACE,
    FAR_AWAY,
    FILTERING,
    OPENING,
    SERVING,
    SETTINGS,
    WRITING,
    add_settings,
)

COMMANDS = (
    *("mount", "umount", "commit", "status", "refresh", "staging", "ls", "cat", "info", "table", "index", "gc"),
    *("convert", "cache", "warm", "pin", "unpin", "verify", "doctor", "completion", "config", "top"),
    *("find", "bench"),
)

_DESCRIPTION = "Shows a store of sharded samples as directories and files: each key a directory, each sample its files."
_SINGLE = "write to a store far away that cannot compare versions, as nobody else does"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error is said."""

    def error(self, message: str) -> NoReturn:
        tell(f"{one_line(message)}; see {self.prog} --help", 3)
        raise SystemExit(USAGE)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """As ever, and with the nearest of what may be said where one is near."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError:
            from shardfs.commands.said import near

            meant = near(str(value), [str(choice) for choice in action.choices or ()])
            if meant is None:
                raise
            raise argparse.ArgumentError(action, f"there is no {value}; did you mean {meant}?") from None


class _Version(argparse.Action):
    """--version, without importing anything for it earlier."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from shardfs import __version__

        print(f"shardfs {__version__}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    statuses = "\n".join(f"  {status:>3}  {meaning}" for status, meaning in EXIT_STATUS.items())
    parser = _Parser(
        prog="shardfs",
        description=_DESCRIPTION,
        epilog=f"exit status:\n{statuses}\n\nmessages go to stderr, one line each; data to stdout",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    common = _Parser(add_help=False)
    common.add_argument(
        "-v", "--verbose", action="count", default=0, help="say more (-vv: also where errors come from)"
    )
    opening = _Parser(add_help=False)
    opening.add_argument(
        "store",
        metavar="STORE",
        help="a directory, tars with braces, a URL (s3, gs, az, https, mltraq+sqlite), or NAME of config.toml",
    )
    add_settings(opening, OPENING)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_mount(commands.add_parser("mount", parents=[opening, common], help="mount a store on a directory"))
    _add_umount(commands.add_parser("umount", parents=[common], help="end mounts, and wait for their processes"))
    _add_commit(commands.add_parser("commit", parents=[common], help="store what was written to a mount, now"))
    _add_status(commands.add_parser("status", parents=[common], help="show how mounts are doing"))
    refresh = commands.add_parser("refresh", parents=[common], help="have a mount look for change in its store, now")
    refresh.add_argument("mountpoint", metavar="MNT")
    refresh.add_argument("--json", action="store_true", help="a JSON object")
    _add_staging(commands.add_parser("staging", help="show and settle what is not stored yet"), opening, common)
    looking = [opening, common]
    _add_ls(commands.add_parser("ls", parents=looking, help="list what a mount would show, without mounting"))
    _add_cat(commands.add_parser("cat", parents=looking, help="write the content of files, without mounting"))
    _add_info(commands.add_parser("info", parents=looking, help="show facts about a store, a key or a file"))
    _add_table(commands.add_parser("table", parents=looking, help="write all samples as one table, without mounting"))
    _add_index(commands.add_parser("index", parents=looking, help="build ahead what makes a remount instant"))
    _add_gc(commands.add_parser("gc", parents=[common], help="list and remove files that no key needs any more"))
    _add_convert(commands.add_parser("convert", parents=[common], help="copy a store into another format"))
    _add_cache(commands.add_parser("cache", help="show and clean what is kept of stores far away"), common)
    warm = commands.add_parser("warm", parents=looking, help="fetch shards into the cache, ahead")
    warm.add_argument("keys", metavar="PATTERN", nargs="*", help="keys, with * and ? (default: all)")
    warm.add_argument(
        "--from", dest="from_file", metavar="FILE", help="also the patterns in FILE, one a line (-: stdin)"
    )
    warm.add_argument("--jobs", type=int, metavar="N", help="shards fetched at once (default: 4)")
    warm.add_argument("--json", action="store_true", help="a JSON object")
    for name, text in (("pin", "keep shards in the cache, whatever its limit"), ("unpin", "take a pin away")):
        pin = commands.add_parser(name, parents=looking, help=text)
        pin.add_argument("keys", metavar="PATTERN", nargs="+", help="keys, with * and ?")
    _add_verify(commands.add_parser("verify", parents=looking, help="read every shard, and tell what is damaged"))
    _add_doctor(commands.add_parser("doctor", parents=[common], help="look for what keeps mounts from working here"))
    _add_top(commands.add_parser("top", parents=[common], help="show what mounts do right now"))
    _add_find(commands.add_parser("find", parents=looking, help="find names in a store, without mounting"))
    add_bench(commands.add_parser("bench", parents=looking, help="measure a store or a mount"))
    _add_config(commands.add_parser("config", parents=[common], help="show every setting, and where it came from"))
    completion = commands.add_parser("completion", help="print what makes a shell complete commands and options")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(verbose=0)
    return parser


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads every shard of STORE, or those whose keys fit a KEY: checks hashes, decompresses, decodes every sample. "
        "Reads the store itself: without --cache-dir or --cache-size nothing is taken from the cache, or put there. "
        "Exit status 1 if something is damaged."
    )
    parser.add_argument("keys", metavar="KEY", nargs="*", help="keys, with * and ? (default: all)")
    parser.add_argument("--jobs", type=int, metavar="N", help="shards read at once (default: one per core)")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows each setting that a mount of STORE, or the mount NAME in config.toml, would have: its value, and where "
        "that came from. Takes what mount takes, and mounts nothing. Without STORE it looks through the whole file."
    )
    parser.add_argument("store", metavar="STORE", nargs="?", help="a store as for mount, or NAME of config.toml")
    _add_words(parser)
    add_settings(parser, SETTINGS)
    parser.add_argument("--json", action="store_true", help="a JSON object, as in MNT/.shardfs/config.json")


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPT,...",
        help="the same settings as words, for fstab: memory=SIZE, no_index, ro, ...; fstab's own are ignored",
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Looks at this machine, and at STORE if one is named, for what keeps mounts from working or makes them slow, "
        "and says how to mend it. Changes nothing; with --rw it puts an object of its own into a store far away, and "
        "removes it again, to see what that does with conditions. Exit status 5 if mounts cannot work as it is."
    )
    parser.add_argument("store", metavar="STORE", nargs="?", help="a store that is to be mounted, as for mount")
    parser.add_argument("--driver", metavar="NAME", help="what kind of store it is, where that is unclear")
    add_settings(parser, FAR_AWAY)
    parser.add_argument("--rw", action="store_true", help="STORE is to be written to: look whether it can be")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def _add_cache(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    parser.description = "What is kept on disk of stores far away. A running mount finds what is there, and no more."
    works = parser.add_subparsers(dest="work", metavar="WORK", required=True)
    info = works.add_parser("info", parents=[common], help="show how much of which store there is")
    prune = works.add_parser("prune", parents=[common], help="remove what is above the limit")
    clear = works.add_parser("clear", parents=[common], help="remove all that is not pinned")
    verify = works.add_parser("verify", parents=[common], help="compare every file with its hash; remove what is bad")
    for work in (info, prune, clear, verify):
        add_settings(work, CACHE_PLACE)
    clear.add_argument("store", metavar="STORE", nargs="?", help="of this store only")
    add_settings(clear, FAR_AWAY[:1])
    clear.set_defaults(anonymous=False, offline=False, deadline=None, min_free=None)
    for work in (info, verify):
        work.add_argument("--json", action="store_true", help="JSON")


def _add_mount(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Mounts STORE on MNT and serves it in the background once the mount answers. Read-only, unless --rw is given. "
        "Without MNT, STORE is the NAME of a mount in config.toml. What is not said here may be said there, or in the "
        "environment: SHARDFS_MEMORY=2G."
    )
    parser.add_argument(
        "mountpoint", metavar="MNT", nargs="?", help="an empty directory, or one to be made (and removed at the end)"
    )
    parser.add_argument("-f", "--foreground", action="store_true", help="stay, log on stderr, tell systemd when ready")
    _add_words(parser)
    add_settings(parser, (*FILTERING, *SERVING, *WRITING))
    parser.set_defaults(from_mount8=False)


def _add_umount(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Unmounts each MNT and waits for the process that served it. What was written to it is stored first; where "
        "that fails MNT stays mounted."
    )
    parser.add_argument("mountpoint", metavar="MNT", nargs="+")
    parser.add_argument("--lazy", action="store_true", help="detach now, even if it is in use")
    parser.add_argument(
        "--force", action="store_true", help="also if not all could be stored: it stays on disk for the next mount"
    )


def _add_commit(parser: argparse.ArgumentParser) -> None:
    parser.description = "Has the mount at MNT store what was written to each KEY, or to all, and waits for it."
    parser.add_argument("mountpoint", metavar="MNT")
    parser.add_argument("key", metavar="KEY", nargs="*", help="a key (default: all that were written to)")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.description = "Asks the mount at MNT, or every mount of this user, how it is doing."
    parser.add_argument("mountpoint", metavar="MNT", nargs="?")
    parser.add_argument("--json", action="store_true", help="a JSON object, or a list of them without MNT")


def _add_staging(
    parser: argparse.ArgumentParser, opening: argparse.ArgumentParser, common: argparse.ArgumentParser
) -> None:
    parser.description = "What was written to mounts and is not stored yet. Works with and without a mount running."
    works = parser.add_subparsers(dest="work", metavar="WORK", required=True)
    listing = works.add_parser("list", parents=[common], help="list what is staged")
    listing.add_argument("store", metavar="STORE", nargs="?", help="of this store only")
    listing.add_argument("--json", action="store_true", help="a JSON list of objects")
    recover = works.add_parser("recover", parents=[opening, common], help="store it, or copy it somewhere else")
    recover.add_argument("key", metavar="KEY", nargs="?", help="a key or id, as listed (default: all that can be)")
    recover.add_argument("--to", metavar="DIR", help="copy the files of KEY into a new directory; all stays as it is")
    recover.add_argument("--single-writer", action="store_true", help=_SINGLE)
    discard = works.add_parser("discard", parents=[common], help="remove it for good")
    discard.add_argument("--yes", action="store_true", help="do not ask")
    trust = works.add_parser("trust", parents=[common], help="let what may have lost bytes in a crash be stored")
    for work in (discard, trust):
        work.add_argument("store", metavar="STORE", help="a store, as it was mounted")
        work.add_argument("key", metavar="KEY", help="a key or id, as listed")


def _add_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="a path as below a mount point")
    parser.add_argument("-l", dest="long", action="store_true", help="kind (d, k for a key, -), size, time and name")
    parser.add_argument("--json", action="store_true", help="a JSON list of objects")


def _add_cat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="+", help="a path as below a mount point")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="a path as below a mount point")
    parser.add_argument(
        "--snapshot", metavar="FILE", help="write all keys and their versions into a new FILE, for mount --snapshot"
    )
    parser.add_argument(
        "--fingerprint", action="store_true", help="one hash over all keys and contents, the same on every machine"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object")


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes a row for each sample of STORE: its key, its name, the paths and sizes of its files as below a mount "
        "point, and its light fields. Shards that the index does not have with their light fields are read first."
    )
    parser.add_argument("--format", choices=("jsonl", "parquet"), help="default: by the name of FILE, else jsonl")
    add_settings(parser, FILTERING)
    parser.add_argument("-o", dest="output", metavar="FILE", help="a new file (default: standard output)")


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Reads every shard of STORE that the persistent index does not have in its present version, and keeps the "
        "names, sizes and positions of its files. Goes on where an earlier run stopped."
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="shards read at once (default: one per core)")
    parser.add_argument("--check", action="store_true", help="read every shard and compare with what the index has")
    parser.add_argument(
        "--light",
        action="store_true",
        help="also keep the light fields of samples, which views, filters and tables use",
    )
    parser.add_argument("--export", dest="export_file", metavar="FILE", help="then write the index to FILE")
    parser.add_argument(
        "--publish", action="store_true", help="then put the index into the store, where every machine finds it"
    )
    parser.add_argument(
        "--import", dest="import_file", metavar="FILE", help="take over what FILE has, and read nothing"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object")


def _add_gc(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Lists what lies in STORE and belongs to no key any more: shards that were rewritten since (MosaicML "
        "Streaming), and temporary files of writers that died. Removes nothing without --yes, never what an index "
        "names or somebody is just writing, and nothing younger than --older-than: who began to read before that may "
        "need it."
    )
    parser.add_argument("store", metavar="STORE", help="a directory, or a URL; far away nothing is removed")
    parser.add_argument("--driver", metavar="NAME", help="what kind of store it is, where that is unclear")
    add_settings(parser, FAR_AWAY)
    parser.add_argument(
        "--older-than",
        metavar="SECONDS",
        type=float,
        help="leave alone what became superseded, or was written, later than that (default: 86400, a day)",
    )
    parser.add_argument(
        "--unnamed", action="store_true", help="also shards that no index names and that nothing has superseded"
    )
    doing = parser.add_mutually_exclusive_group()
    doing.add_argument("-n", "--dry-run", action="store_true", help="only list it (default)")
    doing.add_argument("--yes", action="store_true", help="remove it")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Copies every key of SRC into DST, as copying its directory from one mount to another would. Keys that DST has "
        "are passed over: an interrupted run goes on where it stopped. SRC is never written to. What DST has no word "
        "for (numpy's scalars are plain numbers, ...) is told on stderr."
    )
    parser.add_argument(
        "source", metavar="SRC", help="a store: a directory, or a URL (s3, gs, az, https, file, mltraq+sqlite)"
    )
    parser.add_argument("target", metavar="DST", help="a store, or a directory or URL that is to become one")
    parser.add_argument(
        "--driver", metavar="NAME", help="what DST is, if it is new: squirrel, squirrel-jsonl, streaming or webdataset"
    )
    add_settings(parser, FAR_AWAY)
    parser.add_argument(
        "--format",
        metavar="FORMAT",
        help="what DST's shards are: for streaming mds (default), json, csv, tsv or, with a separator, xsv:||; for "
        "squirrel msgpack (default) or jsonl",
    )
    parser.add_argument("--from-driver", metavar="NAME", help="what kind of store SRC is, where that is unclear")
    parser.add_argument(
        "--compression",
        metavar="CODEC[:LEVEL]",
        help="gz, zst or, but for squirrel, none; for streaming bz2, br, snappy, too (default: squirrel gz, webdataset "
        "none, streaming as what is there)",
    )
    parser.add_argument(
        "--keys", metavar="GLOB", default="*", help="only keys that fit this pattern, whose * takes / too"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="shards at once (default: one per core, 4 at most)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a key that cannot be converted")
    parser.add_argument("--json", action="store_true", help="a JSON object")


def _add_top(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows what the mount at MNT, or every mount of this user, does right now: requests and bytes a second, how "
        "many uses of shards found theirs in memory, how long requests took, which keys are being loaded, what is "
        "staged. On a terminal until Ctrl-C; elsewhere, and with -n, one display after the other."
    )
    parser.add_argument("mountpoint", metavar="MNT", nargs="?")
    parser.add_argument("--once", action="store_true", help="one display, of the next half a second (or of -d)")
    parser.add_argument("-n", dest="times", type=int, metavar="TIMES", help="so many displays")
    parser.add_argument("-d", dest="delay", type=float, metavar="SECONDS", help="between two displays (default: 2)")
    parser.add_argument("--json", action="store_true", help="a line for each mount and time, a JSON object each")


def _add_find(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Prints the paths below a mount of STORE that fit all that is asked for, without mounting it. Reads only "
        "shards in which a file may fit, and none whose names the persistent index has."
    )
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", help="of the whole path; its * takes / too")
    parser.add_argument("--name", metavar="GLOB", help="of the last part of the path, as 000001.* or *.jpg")
    parser.add_argument("--key", metavar="GLOB", help="only in keys that fit; its * takes / too")
    parser.add_argument(
        "--type", metavar="TYPE", help="d: directories, keys too; k: keys; f: files; several as df (default: all)"
    )
    parser.add_argument("--size", metavar="[+-]SIZE", help="files of just that, more (+1M) or less (-4k) bytes")
    parser.add_argument("-0", "--print0", action="store_true", help="end each path with a null byte, for xargs -0")
    parser.add_argument("--no-index", action="store_true", help="neither use the persistent index nor add to it")
    parser.add_argument("--json", action="store_true", help="a JSON object for each, a line each")


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures the mount at STORE, or a store, which it mounts for that with nothing kept from before: the time to "
        "the first byte, names, files and bytes a second, the first time and again. Reads only. With --replay plays "
        "what `shardfs mount --trace` has recorded, in its order; exit status 1 if something ended otherwise than then."
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="about so long (default: 10; a replay: to its end)")
    parser.add_argument("--replay", metavar="FILE", help="play the trace in FILE")
    parser.add_argument(
        "--speed", type=float, metavar="X", help="with --replay: X times the pace of then (default: as fast as it goes)"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object")
