"""The arguments of `top`, `find` and `bench`. Knows nothing of what they do, and imports nothing but argparse."""

from __future__ import annotations

import argparse


def add_top(parser: argparse.ArgumentParser) -> None:
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


def add_find(parser: argparse.ArgumentParser) -> None:
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


def joined(words: list[str]) -> list[str]:
    """The words of a command line with `--size -4k` as one word: argparse would take the second for an option."""
    made: list[str] = []
    for word in words:
        if made[:1] == ["find"] and made[-1] == "--size" and word[:1] == "-" and word[1:2].isdigit():
            made[-1] = f"--size={word}"
        else:
            made.append(word)
    return made


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
