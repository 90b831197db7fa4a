"""`shardfs refresh`: has a mount compare its keys with the store, now."""

from __future__ import annotations

import argparse

from shardfs import config, control
from shardfs.commands import OK, as_json, tell
from shardfs.commands.tabular import number


def run(arguments: argparse.Namespace) -> int:
    answer = control.ask(arguments.mountpoint, "refresh", seconds=2 * config.REMOTE_DEADLINE)
    if arguments.json:
        print(as_json(answer))
    else:
        tell(f"{number(answer['keys'], 'key')}, {number(answer['changed'], 'change')}")
    return OK
