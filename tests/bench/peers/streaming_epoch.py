"""Runs in mosaicml-streaming's own environment: `streaming_epoch.py FOLDER` reads every sample with LocalDataset.

Prints a line of JSON: seconds of reading, seconds from the start of the process to the first sample, samples, bytes.
"""

import json
import os
import sys
import time

from streaming import LocalDataset


def age() -> float:
    """Seconds since this process was started."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    data = LocalDataset(sys.argv[1])
    samples = size = 0
    first = None
    begun = time.perf_counter()
    for number in range(data.size):
        sample = data[number]
        if first is None:
            first = age()
        samples += 1
        size += sum(len(value) for value in sample.values() if isinstance(value, bytes))
    seconds = time.perf_counter() - begun
    json.dump({"seconds": seconds, "first": first, "samples": samples, "bytes": size}, sys.stdout)


main()
