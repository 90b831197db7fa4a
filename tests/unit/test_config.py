"""Limits that depend on the machine, and on one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardfs import config


class _Files:
    """The few files that tell how much memory there is."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files

    def read_text(self, path: Path, encoding: str = "") -> str:
        try:
            return self._files[str(path)]
        except KeyError:
            raise FileNotFoundError(str(path)) from None


def available(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], pages: int = 1 << 20) -> int:
    fake = _Files(files)
    monkeypatch.setattr(Path, "read_text", lambda path, encoding="": fake.read_text(path, encoding))
    monkeypatch.setattr(config.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}.__getitem__)
    return config.memory_available()


def test_without_limits_it_is_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available(monkeypatch, {}) == 4 << 30
    assert config.default_budget() == 1 << 30


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/b/memory.max": "1000000000\n"}, 1_000_000_000),
        ({"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/memory.max": "2000000000\n"}, 2_000_000_000),
        (
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/memory.max": "2000000000\n",
                "/sys/fs/cgroup/a/b/memory.max": "3000000000\n",
            },
            2_000_000_000,
        ),
        ({"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.max": "5000\n"}, 5000),
        ({"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": "max\n"}, 4 << 30),
        ({"/proc/self/cgroup": "4:memory:/x\n", "/sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n"}, 7000),
        # the group's own limit of version 1, and version 2 mounted beside it: both were passed over
        ({"/proc/self/cgroup": "4:memory:/x\n", "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": "6000\n"}, 6000),
        ({"/proc/self/cgroup": "0::/y\n", "/sys/fs/cgroup/unified/y/memory.max": "8000\n"}, 8000),
        ({"/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 4 << 30),
        ({"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": "\n"}, 4 << 30),
    ],
)
def test_a_cgroups_limit_counts_where_it_is_lower(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    assert available(monkeypatch, files) == expected


def test_the_budget_never_falls_below_what_is_useful(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, {}, pages=1)
    assert config.default_budget() == 16 * config.MIB


def test_this_machine_has_memory() -> None:
    assert 0 < config.memory_available() < 1 << 50
    assert config.default_budget() >= 16 * config.MIB


def test_limits_that_lean_on_each_other_hold() -> None:
    assert config.NAME_KEEP + len("~99") < config.NAME_MAX
    assert config.SUSPECT_SIZE < config.BOMB_FLOOR
    assert min(config.BOMB_RATIO.values()) > config.SUSPECT_RATIO
    # a damaged shard may take 256 MiB: its raw bytes, and what is made of them
    assert config.BOMB_FLOOR + config.ZSTD_WINDOW <= 256 * config.MIB
    assert config.GZIP_FEED <= config.READ_SLICE
    assert config.INLINE_RENDER <= config.KEEP_RENDERED
