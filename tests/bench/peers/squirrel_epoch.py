"""Runs in squirrel-core's own environment: `squirrel_epoch.py STORE` reads every sample of a store with the library.

Prints a line of JSON: seconds of reading, seconds from the start of the process to the first sample, samples, bytes.
"""

import json
import os
import sys
import time

from squirrel.serialization import MessagepackSerializer
from squirrel.store import SquirrelStore


def age() -> float:
    """Seconds since this process was started."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    store = SquirrelStore(sys.argv[1], MessagepackSerializer())
    samples = size = 0
    first = None
    begun = time.perf_counter()
    for key in sorted(store.keys()):
        for sample in store.get(key):
            if first is None:
                first = age()
            samples += 1
            size += sum(len(value) for value in sample.values() if isinstance(value, bytes))
    seconds = time.perf_counter() - begun
    json.dump({"seconds": seconds, "first": first, "samples": samples, "bytes": size}, sys.stdout)


main()
