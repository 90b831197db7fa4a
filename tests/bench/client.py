"""The reader of the benchmark where there is no C compiler: the same arguments and output as client.c, with processes.

Slower than the C one, so figures of small files say less.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time

_BUFFER = 256 * 1024


def _one(path: str, stat_only: bool) -> int:
    if stat_only:
        return os.stat(path).st_size
    descriptor = os.open(path, os.O_RDONLY)
    total = 0
    try:
        while got := len(os.read(descriptor, _BUFFER)):
            total += got
    finally:
        os.close(descriptor)
    return total


def _work(paths: list[str], stat_only: bool, seconds: float) -> tuple[int, int, int, str, list[int]]:
    files = size = errors = 0
    failed, latencies = "", []
    deadline = time.monotonic() + seconds
    for path in paths:
        before = time.perf_counter()
        if time.monotonic() >= deadline:
            break
        try:
            size += _one(path, stat_only)
        except OSError as error:
            errors += 1
            failed = failed or f"{path}: {error.strerror}"
        files += 1
        latencies.append(int((time.perf_counter() - before) * 1e6))
    return files, size, errors, failed, latencies


def main() -> None:
    mode, root, lines, workers, chunk, seconds = sys.argv[1:]
    with open(lines) as file:
        paths = file.read().splitlines()
    os.chdir(root)
    number, step = int(workers), int(chunk)
    shares: list[list[str]] = [[] for _ in range(number)]
    for at in range(0, len(paths), step):
        shares[at // step % number] += paths[at : at + step]
    with multiprocessing.Pool(number) as pool:
        pool.map(len, shares)  # so that all processes run before the clock does
        begun = time.perf_counter()
        done = pool.starmap(_work, [(share, mode == "stat", float(seconds)) for share in shares], 1)
        took = time.perf_counter() - begun
    latencies = sorted(latency for part in done for latency in part[4]) or [0]
    said = {
        "seconds": took,
        "files": sum(part[0] for part in done),
        "bytes": sum(part[1] for part in done),
        "errors": sum(part[2] for part in done),
        "first_error": next((part[3] for part in done if part[3]), ""),
        "p50_us": latencies[len(latencies) // 2],
        "p99_us": latencies[len(latencies) * 99 // 100],
        "max_us": latencies[-1],
    }
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
