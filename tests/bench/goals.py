"""The works of the benchmark and what shardfs is to reach in them, as data."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """One thing done to one data set by each of `targets` in turn, on a fresh mount each time."""

    data: str
    name: str
    kind: str
    """The function that does it, of `works`."""
    unit: str
    """`s` (less is better), `files/s`, `MB/s`, or `ratio` (of bytes)."""
    targets: tuple[str, ...]
    passes: tuple[str, ...]
    threads: int = 1
    shuffled: bool = False

    @property
    def full_name(self) -> str:
        return f"{self.data}.{self.name}"


FLOORS = ("ext4", "passthrough")
PEERS = ("squashfuse", "ratarmount")
EVERY_FORM = ("shardfs-gz", "shardfs-zst", "shardfs-mds", "shardfs-mdszst")

WORKS = (
    Work("small", "first", "first", "s", (*FLOORS, "shardfs-gz", "shardfs-mds", *PEERS, "squirrel"), ("cold",)),
    Work("small", "find", "listing", "s", (*FLOORS, "shardfs-gz", *PEERS), ("cold", "warm")),
    Work("small", "ls", "listing", "s", (*FLOORS, "shardfs-gz", *PEERS), ("cold", "warm")),
    Work("small", "order1", "read", "files/s", (*FLOORS, *EVERY_FORM, *PEERS), ("cold", "warm")),
    Work("small", "order8", "read", "files/s", (*FLOORS, "shardfs-gz"), ("cold", "warm", "stat", "hot"), 8),
    Work("small", "shuffle1", "read", "files/s", (*FLOORS, "shardfs-gz"), ("cold", "warm"), 1, True),
    Work(
        "small",
        "shuffle8",
        "read",
        "files/s",
        (*FLOORS, *EVERY_FORM, *PEERS, "fuse-zip", "ratarmount-targz"),
        ("cold", "warm", "stat", "hot"),
        8,
        True,
    ),
    Work("images", "first", "first", "s", (*FLOORS, "shardfs-gz", "shardfs-mds", *PEERS, "streaming"), ("cold",)),
    Work("images", "order1", "read", "MB/s", (*FLOORS, *EVERY_FORM, *PEERS), ("cold", "warm")),
    Work("images", "shuffle8", "read", "MB/s", (*FLOORS, *EVERY_FORM, *PEERS), ("cold", "warm", "hot"), 8, True),
    Work("images", "epoch4", "read", "MB/s", (*FLOORS, "shardfs-mds", "streaming"), ("cold",), 4, True),
    Work("text", "order1", "read", "MB/s", (*FLOORS, "shardfs-gz", "shardfs-zst", *PEERS), ("cold", "warm")),
    Work("text", "epoch4", "read", "MB/s", (*FLOORS, "shardfs-gz", "shardfs-zst", "squirrel"), ("cold",), 4, True),
    Work("arrays", "dd", "dd", "MB/s", (*FLOORS, "shardfs-gz", "shardfs-zst", "shardfs-mds", *PEERS), ("cold", "warm")),
    Work("writing", "cp", "write", "s", ("ext4", "shardfs-rw"), ("copied", "stored")),
    Work("writing", "bytes", "written", "ratio", ("shardfs-rw",), ("cold",)),
    Work("many", "remount", "remount", "s", ("shardfs-zst",), ("cold",)),
    Work("many", "find", "listing", "s", ("shardfs-zst",), ("cold", "warm")),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """In `work` and its pass, `subject` is at least `factor` times as fast as `other`.

    Without `other`, `limit` is the most that the figure itself may be.
    """

    text: str
    work: str
    phase: str
    subject: str
    other: str = ""
    factor: float = 0.0
    limit: float = 0.0


def _listing_goals() -> list[Goal]:
    found = []
    for name, tool in (("find", "find"), ("ls", "ls -lR")):
        for phase in ("cold", "warm"):
            work = f"small.{name}"
            found.append(Goal(f"{tool}, {phase}", work, phase, "shardfs-gz", "ext4", 0.6))
            found.append(Goal(f"{tool}, {phase}", work, phase, "shardfs-gz", "ratarmount", 10.0))
    return found


GOALS = (
    Goal("open+read+close of 4 KiB files, 8 threads", "small.shuffle8", "hot", "shardfs-gz", "passthrough", 0.7),
    Goal("the same with prefill", "small.shuffle8", "cold", "shardfs-gz", "passthrough", 1.0),
    Goal("cold packed shards, in order, one thread", "small.order1", "cold", "shardfs-gz", "ext4", 1.0),
    Goal("cold compressed shards, global shuffle, 8 threads", "small.shuffle8", "cold", "shardfs-gz", "fuse-zip", 1.0),
    Goal("the same", "small.shuffle8", "cold", "shardfs-gz", "ratarmount", 7.0),
    Goal("the same", "small.shuffle8", "cold", "shardfs-gz", "ratarmount-targz", 100.0),
    Goal("second pass, small files, 8 threads", "small.shuffle8", "warm", "shardfs-gz", "ext4", 0.25),
    Goal("second pass, files of 110 KB, 8 threads", "images.shuffle8", "warm", "shardfs-gz", "ext4", 0.9),
    Goal("large files in sequence, cold", "arrays.dd", "cold", "shardfs-mds", "passthrough", 0.9),
    Goal("large files in sequence, cold", "arrays.dd", "cold", "shardfs-zst", "passthrough", 0.9),
    *_listing_goals(),
    Goal("stat after read, 8 threads", "small.shuffle8", "stat", "shardfs-gz", "ext4", 0.9),
    Goal("whole epoch, compressible Squirrel shards, 4 threads", "text.epoch4", "cold", "shardfs-gz", "squirrel", 1.5),
    Goal("whole epoch, MDS shards of images, 4 threads", "images.epoch4", "cold", "shardfs-mds", "streaming", 1.0),
    Goal("cp -r of 10,000 files of 50 KB", "writing.cp", "copied", "shardfs-rw", "ext4", 0.3),
    Goal("the same until it is stored, or on disk", "writing.cp", "stored", "shardfs-rw", "ext4", 0.3),
    Goal("bytes written to the store for that, of the shard's", "writing.bytes", "cold", "shardfs-rw", limit=1.1),
    Goal("1M samples: remount to the first ls -l in a shard, s", "many.remount", "cold", "shardfs-zst", limit=0.3),
)

MEMORY_WORK = "many.find"
MEMORY_BUDGET_MIB = 256
MEMORY_REST_MIB = 150
MEMORY_SHARDS = 1.5
"""The peak of a daemon stays below its budget, so many times the largest shard, and the rest, at a million files."""
