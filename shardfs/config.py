"""Every limit, with its reason. Knows nothing of who obeys it."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

MIB = 1 << 20

COPY_SLICE = MIB
"""No call copies more than this with the GIL held: a 1 MiB copy stops the event loop for less than a millisecond."""

COLUMNS_TOLD = 20
"""Fields of a sample that no column holds, listed in one message: as many as a terminal shows of one line."""

READ_SLICE = MIB
"""Stored bytes are fetched from a local file in pieces of this size."""

SCRATCH_FLOOR = 16 * 1024
SCRATCH = MIB
SCRATCHES = 4
"""Reads from the page cache between these sizes go into buffers that are kept, this many at most: one is in use at a
time, and the kernel asks for READ_AHEAD_KB at most."""

ADVISE_STEP = MIB
"""The kernel reads about this much for one piece of advice, whatever it was asked for."""

ADVISE_AFTER = 8
ADVISE_LIMIT = 128 * MIB
"""After so many pieces of a shard of at most this size that had to be waited for, all of it is read ahead: it is being
used as a whole."""

READERS = 256
"""Shards that may be open for reading parts of them: each holds a descriptor..."""

READERS_SHARE = 4
"""...and together no more than one part in this many of what the process may have: the rest is for shards that are
read while they are pinned, and for storage, of which each of WORKERS_IO threads may hold two."""

LINKED_OPEN = 64
"""Objects of the storage that samples refer to and that are held open, for all shards of a driver together: who reads
some files at once finds them open, and it is a small part of what any process may have."""

LINKED_CHECKED = MIB
"""Such an object is compared with its hash, where that is known, if it is no larger than this: what reads it whole in
a request or a few pays for it with a millisecond."""

GATHERED_SAMPLE = 1024 * MIB
"""Bytes of one sample with all files that it refers to, where `convert` puts them into one record: held in memory a few
times over while that is written, and few systems' records can be larger."""

JSON_TEXT = 64 * MIB
"""A text in a column is looked into for what it says as JSON up to this many characters: a second's work."""

FOLDER_FILES = 100_000
"""Files in one directory that was stored as an artifact; one with more is not shown, as a shard that holds more than is
reasonable is not."""

GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
"""What opening says of an object that was removed, or that something else (a symbolic link) has taken the place of."""

DESCRIPTORS = 4096
"""A process that serves a mount raises its limit of descriptors to this, as far as it may."""

BOMB_FLOOR = 128 * MIB
"""Below this raw size a shard may compress as well as it likes: it fits into memory whatever it holds. A damaged shard
may take 256 MiB in all; the other half is for what is made of the raw bytes before the damage shows."""

BOMB_RATIO = {"gz": 200, "zstd": 1_000, "bz2": 1_000, "br": 1_000, "snappy": 64}
"""Above BOMB_FLOOR, raw bytes per stored byte at most, by codec. Real shards reach 10 to 100, equal samples over and
over 150 with deflate and 450 with zstd; deflate's bombs 230 (when made fast) to 1,000, zstd's 30,000, those of bzip2
and brotli are beyond that. snappy has no more than 64 raw bytes for 3, whatever it says."""

SUSPECT_SIZE = 32 * MIB
SUSPECT_RATIO = 50
"""A shard that passes this raw size while it compresses better than this is looked into before more is made of it:
a stream of zeros is a million damaged samples and need not be decompressed to its end first."""

GZIP_BUFFER = 512 * 1024
"""Stored bytes that isal's gzip reader holds, and the longest header of a member that it takes: a name and a comment of
any length may be in there, but none of a file's. Each time that it is filled the GIL is asked for; for more than this
memory is taken from the system each time."""

GZIP_FEED = 64 * 1024
"""zlib copies what is left of its input at the end of each member: of this much at most, or a megabyte for each of
50,000 empty members would be copied."""

SNAPPY_PIECE = 64 * 1024
"""Raw bytes that snappy compresses by themselves: its own compressor's figure, and as far back as it ever looks."""

ZSTD_WINDOW = 128 * MIB
"""Largest zstd window accepted (levels up to 19 use 8 MiB, --ultra --long=27 this): a frame may ask for 3.75 TiB."""

FRAME_TARGET = MIB
"""Raw bytes in one frame of a .zst shard written here: one sample of a large shard costs a millisecond. Text takes 3 %
more than in one frame; 9 % with frames of a quarter of this, and 1 % with 4 times it, which take 4 ms."""

FRAME_MAX = 64 * MIB
"""Largest frame, stored or raw, that is decompressed for the sake of one sample; a shard with a larger one is loaded
whole."""

FRAME_TABLE = 32 * MIB
"""Largest seek table: 4 million frames, 4 TiB of what is written here. It takes twice that in memory."""

FRAME_HINT = 64 * 1024
"""Stored bytes at a shard's end that are looked at for how large it will be: the seek table of 8 GiB of shard."""

FRAMES_AHEAD = 4
FRAMES_SURE = 2
"""Frames that are decompressed before they are asked for, once so many have been read in a row: two workers' work."""

FRAMES_HELD = 256 * MIB
"""Decompressed frames kept of one opened shard, a quarter of a second's work: all of a shard that has just been worth
opening, and of a huge one what a few readers are at. A random order over much more finds little of it in any case."""

HUGE_PAGE = 2 * MIB
"""What the kernel's huge pages are on most machines; where they are others, less is gained."""

MAPPED_RAW = 4 * MIB
"""Raw bytes above this lie in a mapping of their own with huge pages: page faults take a fifth of their time, and all
goes back to the system when the shard is dropped. What is left behind the last whole huge page is in small ones where
the size is known, so that nothing is rounded up; for fewer bytes that would be most of them."""

TOKEN_FLOOR = 1_000_000
TOKENS_PER_STORED_BYTE = 16
"""Values a shard may hold: the floor, plus this many per stored byte. A run of zero bytes is one value per raw byte
and would otherwise keep a worker busy for minutes; real shards stay below 6 per stored byte."""

SAMPLE_TOKENS = 2
FILE_TOKENS = 4
"""A sample, and a value with a file of its own, count as this many values more: a file costs 10 microseconds, and half
a kilobyte while its sample is laid out."""

TOKENS_PER_RAW_BYTE = 4
"""No raw byte counts as more: a sample that is an empty run of bytes takes two and counts as seven."""

TEXT_PER_TOKEN = 16
"""Bytes of text that count as one value more: text takes up to four bytes of memory for one, and is copied."""

JSON_LINES = 8
"""All lines of a JSONL shard together may hold this many times what one line may: each is forgotten before the next."""

JSON_ARRAY_FLOOR = 32 * MIB
"""An array out of a JSON line may take this much memory, and 16 bytes per byte of the line: `<U1000000` makes megabytes
out of each empty text."""

QUICK_RECORD = 1024
"""A record up to this size is read as a whole by the msgpack library where one of its light fields is wanted: it copies
what is heavy, which above this costs more than walking around it."""

LIGHT_PIECE = 64 * 1024
LIGHT_RUN = 16
"""Samples of light fields only are read by the msgpack library from pieces of this size, for as long as so many or more
follow one another: to begin costs as much as to walk a few."""

ARRAY_HEAD = 256
ARRAY_HEADS = 64
"""Heads of arrays that are remembered, by field: of how many bytes, and how many of them."""

SHAPES = 256
SHAPE_FIELDS = 64
SHAPE_NAMES = 4096
"""Shapes of samples that are remembered, and fields and characters of their names in one at most: some megabytes.
The samples of a shard have one shape or a few; each field that may be null doubles them."""

LONG_TEXT = 2048
"""From this many characters on, a text's JSON is made by whole-text operations, which have a fixed cost of
microseconds; below it, character by character."""

TEXT_PER_ESCAPE = 64
"""Characters of a long text for one that must be escaped, below which json's own encoder is faster."""

PICKLE_OPS = 1_000_000
"""Opcodes of an object array's pickle that are looked at; one with more is not shown. A second's work."""

GZIP_MEMBER = MIB
"""Raw bytes in one member of a .gz shard written here: each is compressed by itself, so that several cores can. Matches
are looked for in 32 KiB before, of which a member's beginning has none."""

GZIP_SLICE = 256 * 1024
"""Of a member so much is compressed in one call by zlib, and by isal in versions that cannot do all of it in memory of
their own. What comes out of a whole one is gathered in memory that is taken anew each time, which costs as much as
compressing it quickly; each call between two of less would wait for the GIL."""

GZIP_DEFAULT = 6
IGZIP_DEFAULT = 3
"""Levels at which .gz shards are written where none is asked for, by zlib and by isal. isal's 3 is 7 to 10 times as
fast as zlib's 6; texts become 3 % larger, source code 13 %, arrays and pictures are the same (docs/BENCHMARKS.md)."""

IGZIP_LEVELS = {1: 1, 2: 3, 3: 3}
"""zlib's levels that one of isal's is as good as, or better: files no larger, in a third to a tenth of the time."""

GZIP_PROBES = 64
GZIP_PROBE = 512
GZIP_WORTH = 0.98
"""Where no level is asked for, a member is stored as it is if so many pieces of so many bytes out of it do not become
smaller together, in a tenth of the time; and so is one that as a whole does not become smaller than this share of its
size: most pictures, sounds and films, which are loaded in a thirtieth of the time then. Noise with a tenth of text in
it becomes 5 % smaller, and is compressed."""

WORK_THREADS = 4
"""Threads that compress one shard at most: samples are encoded by one, which keeps about so many busy."""

WORK_AHEAD = 2
"""Pieces of a shard that wait for these threads or for being written: with those in work, some megabytes."""

SPOOL = 32 * MIB
"""Records of an MDS shard that is being written are held in memory up to this and go to a file beyond: the shard begins
with how many there are."""

PLACES_KEPT = 1_000
"""Versions of MDS shards that an index has no more, and whose files are remembered for who has begun to read them."""

SHARDS_HELD = 64
"""Shards of one key that were written and are not in the index yet are locked up to this number, a descriptor each, so
that nobody takes them for garbage; of more, only their age tells."""

GARBAGE_AGE = 86_400.0
"""Seconds for which `shardfs gc` leaves alone what is superseded, or seems unfinished: those who read a data set look
at its index once, when they begin."""

MDS_SHARD = (1 << 32) - 1
"""Largest MDS shard: positions in it have 32 bits."""

LOCK_WAIT = 10.0
"""Seconds to wait for others who replace a file in the same directory; each of them takes milliseconds."""

STREAMING_INDEX = 256 * MIB
"""Largest index.json of MosaicML Streaming that is read, in bytes: half a million shards with a dozen columns each, and
minutes of parsing already."""

INDEX_RACES = 8
"""An index.json that changes while it is being replaced is read and edited again this often."""

INDEX_PAUSE = 0.05
"""Seconds that who has lost a race for an index.json far away waits at most before the second attempt, twice as long
before the third: writers that come again at once would meet again."""

INDEX_RACES_FAR = 20
"""The same for an index.json far away, which takes several requests to replace."""

NESTING = 64
"""Deepest nesting of dicts and lists in a sample; json, msgpack and Python's own stack all end near there or later."""

NDIM = 64
"""Most dimensions of an array: numpy 2's own limit."""

PNG_MAX = 1 << 30
"""Arrays whose pixels take more than this stay `.npy`: a PNG chunk ends at 2 GiB, and viewers long before."""

INLINE_RENDER = 64 * 1024
INLINE_RECORD = 256 * 1024
INLINE_FILES = 64
"""A file of at most this size, out of a record of at most this size and this many files, is rendered on the event
loop (tens of microseconds, 3 ms at worst); a larger one in a worker."""

KEEP_RENDERED = 128 * 1024
"""A rendered file above this is kept (within the budget): the kernel reads 128 KiB at a time and will come again."""

NAME_MAX = 255
"""Bytes in one file name, on Linux."""

NAME_KEEP = 240
"""A name that must be shortened is cut to this, so that `~2` still fits behind it."""

TAR_MEMBERS = 2_000_000
"""Members that a tar may have: 1 GiB of headers alone, and about as much memory while they are walked."""

TAR_MEMBER = 500
"""Bytes of memory that a member takes while its tar has been walked: its name, numbers, and place in a sample."""

TAR_HEADER = 1 << 20
"""Bytes of an extended header (a long name, PAX records): a path has 4,096, and more than 1 MiB of others is no header
in earnest."""

TAR_WINDOW = 64 << 10
"""Bytes of a tar that are read at once for headers where members are smaller than that; else 512, as only headers are
wanted."""

TAR_BEHIND = 1 << 20
"""Bytes behind the end of a tar's members that are looked at: zeros that fill up a record, or another tar behind it."""

BRACES = 100_000
"""Names that the braces of one argument may stand for: a hundred times the shards of a large data set."""

EXTENSION_MAX = 16
"""Bytes of what is taken for an extension, and kept, where a system's own name for a file must be shortened."""

TEXT_FILES = "+text"
"""Behind `png` or `npy` in how samples are shown: text fields are files of their own."""

SAMPLE_DIGITS = 6
"""Digits of a sample's number at least: `000042`."""

WORKERS_CPU = 2
"""Shards decompressed and indexed at once: one per core gains most, more only holds more memory."""

LARGE_LOAD = 32 * MIB
"""Loads above this have workers of their own, so that small ones need not wait for them."""

SMALL_SHARE = 16
"""Large loads leave one part in this many of the budget to small ones."""

GROW_STEP = 8 * MIB
"""A load that outgrows its estimate asks for room again after each further piece of this size."""

WORKERS_LENT = 64
"""Loads at once, of small and of large shards each, when all that go before wait for storage. A load that waits lends
its place: two shards on a disk that hangs must not stop the first read of every other key."""

LEND_AFTER = 0.05
LEND_SHARE = 10
"""A load waits if its thread had the CPU for less than one part in LEND_SHARE of the last LEND_AFTER seconds: one that
computes gets more of it on any machine that is not hopelessly busy."""

WORKERS_IO = 64
"""Threads that may wait for storage at once: they cost nothing but a stack, and who comes behind the last waits."""

MAX_TASKS = 1024
"""FUSE requests that may wait at once: with few tasks, a dozen blocked readers stop `ls` of other keys."""

TABLE_SHARE = 8
"""Tables of names and sizes may take one part in this many of the budget, beside the shards' bytes..."""

TABLE_FLOOR = 32 * MIB
"""...or this, whichever is more."""

FOREVER = 86_400.0
"""Seconds the kernel may keep names and attributes inside a sealed shard, which never change."""

REFRESH = 1.0
"""Seconds the kernel may keep names and attributes of the root, of directories that only lead to keys and of keys; and
how often, at most, the store is asked on use whether a key is still the same."""

REFRESH_WAIT = 0.1
"""Seconds a lookup waits for that answer: a store that is slower is seen a moment later, and stops nobody."""

REFRESH_CHECKS = 10_000
"""Keys of which the kernel knows something that are compared with the store in one round: 50 milliseconds of one core
where they are local files. Of more, each is looked at in every second round, or third."""

REFRESH_IDLE = 5
"""A mount of which nobody asks anything has one round in so many intervals: who reads out of the page cache is told
then, and a mount that nobody uses costs next to nothing."""

REFRESH_LEAST = 0.1
"""Seconds between rounds at least, however short the interval."""

REFRESH_SHARE = 10
"""Rounds take one part in so many of a core at most, and the same of the interval where keys must be asked for one by
one: the next is put off where the last took long."""

REFRESH_TAKEN = 100
"""Keys that a round found replaced and are put in place at a time, before requests have their turn."""

ERRORS_KEPT = 1_000
"""Lines of damage kept for asking; older ones are in the log."""


def boot_id() -> str:
    """What is different for each run of the machine; empty where that cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def base_directory(variable: str, default: str) -> Path | None:
    """A base directory as the XDG specification has them: the variable if it is absolute, else the default in the home;
    None where there is no home."""
    named = os.environ.get(variable, "")
    path = named if os.path.isabs(named) else os.path.expanduser(default)
    return Path(path) if os.path.isabs(path) else None


def _read_number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def memory_available() -> int:
    """Bytes of memory this process may count on: the machine's, or its cgroup's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def cgroup_limits(groups: Path, root: Path) -> list[int]:
    """The memory limits of a process's cgroup and of all above it, versions 1 and 2 alike, where they are mounted as
    systemd does (`memory`, `unified` below the root, or the root itself)."""
    try:
        lines = groups.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    limits = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        mounts = [root / "memory", root / controllers] if controllers else [root, root / "unified"]
        parts = path.strip("/").split("/") if path.strip("/") else []
        for mounted in mounts:
            for depth in range(len(parts) + 1):
                limit = _read_number(str(mounted.joinpath(*parts[:depth], file)))
                if limit is not None:
                    limits.append(limit)
    return limits


def readers() -> int:
    """How many shards may be open for reading parts of them, in a process with so few descriptors as this one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return READERS if most == resource.RLIM_INFINITY else min(READERS, most // READERS_SHARE)


def default_budget() -> int:
    """Bytes of loaded shards kept by default: a quarter of the memory this process may count on."""
    return max(16 * MIB, memory_available() // 4)


NOTES_LISTED = 100
NOTES_LOGGED = 20
"""Cells that could not be decoded, listed below `.shardfs` and logged one by one for each shard; there may be one in
every sample."""

NOTICES = 100_000
"""What the kernel is still to be told, two notices for each superseded key, some 300 bytes each; rounds take in no more
keys while half of it is waiting, and of what a listing brings at once above that it finds out by itself."""

NAMES_TOLD = 10_000
"""Once a key was stored anew the kernel is told of its names one by one, up to so many: 20 microseconds each, and who
lists the key meanwhile waits for the same lock. Of a larger key it is to forget the directory with all that is below,
which is one notice, but for a moment a process that works in there has no name of its directory."""

PREFILL_FILE = 32 * 1024
"""Files up to this size are given to the kernel when their shard is loaded: above it, a READ costs no more."""

CANARY_FILES = 32
"""A listing of at least so many files holds one back, by which to see whether who lists wants attributes."""

LISTERS = 256
"""Processes whose last listing is remembered."""

GIFT = 128 * 1024
"""Files up to this size are given to the kernel when they are first opened, if they are at hand: above it the request
that this saves is nothing beside the copying."""

PREFILL_KNOWN = 16
"""Names of a key that the kernel must know before its files are given to it: a lone reader has no use for the rest."""

PREFILL_UNKNOWN = 64
"""Files the kernel turned out not to know, beyond as many as it knew, after which a prefill ends."""

PREFILLS = 2
"""Prefills that may wait, each with its shard in hand."""

PREFILL_SPARE = 256 * MIB
"""Memory that must be available besides: page cache is not worth taking memory from programs."""

NOTICE_WAIT = 1.0
"""Seconds to wait at the end for the thread that tells it."""

BACKGROUND = 256
"""Reads through the page cache that may wait at once. The kernel's own figure is 12 for a whole mount: with so many
waiting for one slow shard, even those of loaded keys were not sent. On a machine of 1 GiB an ordinary user may set
334."""

READ_AHEAD_KB = 1024
"""The kernel asks for 128 KiB at a time unless told otherwise, which root may do; 1 MiB a request is a fifth faster."""

READ_AHEAD = 2
"""Shards loaded ahead at a time: one per core."""

READ_AHEAD_SURE = 3
"""Touches with one step between them that make a run."""

READ_AHEAD_WINDOW = 6
"""Touches among neighbours that make a block-wise shuffle."""

READ_AHEAD_SEEN = 64
"""Touches remembered."""

READ_AHEAD_WASTE = 4
"""Shards loaded ahead in vain, beyond a quarter of those that were used, after which it stops."""

READ_AHEAD_SHARE = 4
"""A shard is loaded ahead only if it takes no more than one part in this many of the budget."""

CONFIG_FILE = MIB
"""Bytes of a configuration file that are read at most: thousands of mounts."""

LOG_BYTES = 4 * MIB
"""Size of the log file of a mount in the background; one older one is kept beside it."""

HANDLES = 1 << 20
"""Files and directories that may be open at once; above it open says EMFILE."""

INDEX_ROW = 128 * MIB
"""Bytes that one row of the persistent index may unpack to: 4 million files in one shard."""

INDEX_LEVEL = 3
"""zstd level of its rows: 4 bytes a file, unpacked in a tenth of a millisecond."""

INDEX_WAIT = 1.0
"""Seconds to wait for another process that writes into the index, and for one answer of it."""

STAGED_ENTRIES = 1_000_000
"""Files and directories in one staged directory: each takes about 500 bytes of memory. Above it a new one is ENOSPC."""

STAGED_COPY = MIB
"""A staged file is copied in pieces of this size."""

HEAP_FROM = 16
"""A staged directory in which so many entries were made puts further small files into one file on disk: to make, close
and remove a file each takes longer than writing 50 KB. Whoever edits a few files keeps files."""

HEAP_FILE = 128 * 1024 - 1
"""Bytes of the largest file there: programs write 128 KiB at a time where there is more to come."""

HEAP_BLOCK = 4096
"""Each begins at a multiple of this, so that its blocks can be given back alone."""

STAGED_SPARE = 64 * 1024
"""Bytes of disk that each staged directory keeps for its journal, so that removing files, sealing and setting aside
still work on a full disk: 500 records."""

ROOM_STEP = MIB
ROOM_STEP_MAX = 64 * MIB
ROOM_SHARE = 8
"""Room for the encoded shard is reserved one part in ROOM_SHARE of the need ahead, within these bounds: 40 steps for
the first gigabyte, and a key of one small file takes a megabyte."""

PACK_SMALL = 1024
PACK = 64 * 1024
"""What the msgpack library begins with for a record of a journal, and for a sample. Its own 256 KiB come from the
system and go back to it each time, page faults and all: 10 microseconds and more for a record of 60 bytes."""

DOOMED_FILES = 1_000
DOOMED_BYTES = 64 * MIB
"""Data of removed files waits on disk until the journal's record of the removal is durable; above one of these that is
not waited for but done."""

JOURNAL_SLACK = 10_000
JOURNAL_RATIO = 4
"""A journal is written anew when it has this many records more than this many times the entries it describes."""

TEMPORARY_AGE = 86_400.0
"""Seconds after which an unfinished write that nobody holds is a dead one's whatever machine it was begun on: a writer
touches its file every few seconds, and then reads it through once."""

SHUTDOWN_WAIT = 30.0
"""Seconds that the end of a mount waits for what was written to be stored: as long as a store that answers again after
a restart may need, and a third of what systemd gives a service. What is not stored by then stays staged. That is what
--shutdown-timeout replaces..."""

SHUTDOWN_MOST = 86_400.0
"""...with up to a day: who wants to wait for longer has a store that does not answer."""

DRAIN_SECONDS = 2.0
"""Requests under way may end by themselves for so long after a signal; then their callers get an error."""

END_SECONDS = 10.0
"""A thread that hangs in storage by then is given up, so that the mount goes and the service manager need not kill."""

HURRY_SECONDS = 1.0
"""The same after a second signal: who sends it wants no more waiting."""

STATUS_EVERY = 10.0
"""Seconds between two looks at what the service manager shows of a mount: a person looks at it, and it is only said
where it has changed."""

WATCHDOG_LEAST = 0.02
"""Seconds between two signs of life at least, however often a service manager wants one."""

SEALS = 2
"""Keys sealed at once: one per core. Each holds the shard that it is made of, and one sample of the new one."""

WRITE_BACK = 5.0
"""Seconds without a change and without an open writer after which a key is sealed by itself."""

CHANGES_KEPT = 1_000
"""Keys of which it is remembered what their last seal made of types that the store lacks: for `status`, `commit`."""

SEAL_RETRY = 1.0
SEAL_RETRY_MAX = 60.0
"""Seconds until a seal that failed is tried again: twice as long each time, up to this."""

SEAL_CLOSING = 0.5
SEAL_CLOSING_MOST = 10.0
"""Seconds a seal waits for files that are open for writing to be closed, before it says that they are: so long for the
next of them, because the kernel tells of closes later than of the request to store what was closed, and no longer,
because who asks may have them open; and so long in all, as somebody may go on opening and closing."""

VALUE_BYTES = (1 << 32) - 1
"""Largest staged file that can become a field: msgpack's lengths and MDS's positions have 32 bits. It is said before
the file is read: it would be taken into memory as a whole."""

SEAL_RESCUES = 4
"""A seal that is done looks so often for bytes that only the old shard has; each time somebody may just have taken over
another file of it."""

JOURNALS_OPEN = 256
"""Journals with a descriptor held, and one for the heap beside it; one more closes the one used longest ago. 1,024
descriptors are the usual limit."""

MOUNT_ANSWER = 30.0
"""A new mount that has not answered statvfs within so many seconds is taken for broken. It needs a millisecond."""

UNMOUNT_BUSY = 2.0
"""`shardfs umount` tries for so many seconds before it says that a mount is in use: whoever looks through all mounts of
the machine (df, a desktop, another `shardfs status`) holds each of them for a moment."""

UNMOUNT_AGAIN = 0.02
"""Seconds between those attempts."""

MOUNT_GONE = 10.0
"""`shardfs umount` waits so many seconds for the daemon to end."""

HELD_GONE = 2.0
"""After so many of them it is looked whether another mount namespace has a copy of the mount, which ends with that: a
container that is being started lets go of what it got sooner."""

DETACHED_GONE = 1.0
"""A detached mount's daemon ends at once if nobody uses it, else with its last user: that is not waited for."""

STORING_GONE = 86_400.0
"""The same for one that is storing what was written: who interrupts the command ends nothing but the waiting."""

CONTROL_ANSWER = 10.0
"""Seconds in which a mount answers what it need not work for; it needs a millisecond, and a thread that decodes takes
the event loop a tenth of a second at worst."""

CONTROL_STATUS = 2.0
"""The same for `shardfs status` and `top`, which report mounts that are silent."""

CONTROL_ASKED = 8
"""Mounts that `status` and `top` ask at once."""

CONTROL_IDLE = 30.0
"""Seconds that a client of a mount may take for a request, and for taking its answer; who connects has one in hand."""

CONTROL_CLIENTS = 32
"""Clients of a mount at once. Each command is one, for as long as it takes: a seal may take minutes."""

CONTROL_REQUEST = 64 * 1024
"""Bytes of one request: a command, and the longest key there can be."""

CONTROL_REPLY = 16 * MIB
"""Bytes of one answer: what is staged, of 50,000 keys."""

CONTROL_LOOK = 1.0
"""Seconds for which who looked at a document below `.shardfs` opens just that: `cp` looks, opens and looks again within
a millisecond, and takes what has another number then for another file."""

CONTROL_STATES = 256
"""States of such documents that may be known to somebody at once, and stored shards that may be open there; the
documents that grow are bounded to a megabyte, and most are some kilobytes."""

OLD_BYTES = 0.5
"""Seconds for which the bytes of a shard that was replaced stay where files are opened without a request: the kernel is
told at once to forget its names, which takes milliseconds, and whoever was on the way to a file then finds it whole."""

CONTROL_READERS = 16
"""Stored shards below `.shardfs/raw` that are kept open where the kernel does not say who has them open: each is a
descriptor, and the disk space of one that is replaced, until the kernel forgets its name."""

CONTROL_SIZES = 10_000
"""Shards of which the size of their light fields is remembered: to tell it anew takes a microsecond a sample."""

CONTROL_SHARE = 2
"""The light fields of a shard are shown in one file if they take no more than one part in this many of the budget:
they are made as a whole, beside their shard."""

XATTR_HASHED = 1 << 30
"""Bytes of the largest file whose hash is told as an extended attribute: who asks waits, uninterruptibly, for one to
three seconds then. `sha256sum` has no such limit."""

XATTR_HASHING = 2
"""Files that are hashed for that at once: a `getfattr -R` over everything must not take all workers from readers."""

XATTR_HASHES = 10_000
"""Hashes that are remembered, 200 bytes each."""

XATTR_SLICE = MIB
"""Bytes of a file that are hashed at a time."""

XATTR_JSON = 16 * MIB
"""Bytes of a `.json` in which the true name of a shortened field is looked up."""

XATTR_VALUE = 4096
"""Bytes of what is told of an array's type: one of a thousand named columns is cut."""

LOG_LINES = 1_000
LOG_LINE = 1_000
"""Lines of the log that a mount shows, and characters of each: a megabyte."""

KERNEL_MIN = (5, 4)
"""Older kernels than this are told of: pidfd_open, by which a daemon's end is waited for, came with 5.3, and 5.4 is
the long-term release after it."""

FUSE_DEVICE = (10, 229)
"""Major and minor number of /dev/fuse (Linux, Documentation/admin-guide/devices.txt)."""

PYFUSE3 = "3.5.0"
"""The release whose request loop is replaced (docs/DESIGN.md says why); pyproject.toml pins it."""

DEBIAN_PACKAGES = "fuse3 libfuse3-dev pkg-config gcc libc6-dev python3-dev"
"""What pyfuse3 needs in order to be compiled and to mount; tools/bootstrap.sh installs these, and venv. libc6-dev is
named because images for containers install nothing that is only recommended."""

MEMORY_LOW = 512 * MIB
"""Below it a quarter holds a shard of 100 MiB and little else."""

STAGING_LOW = 1 << 30
"""Bytes free for staging below which `doctor` tells: a new key is staged whole, and once more when it is stored."""

CLOCK_FLOOR = 1_735_689_600.0
"""2025-01-01: no clock is right that says less."""

CLOCK_AHEAD = 300.0
"""Seconds that a shard may be younger than now: object stores refuse clocks that are wrong by more than 15 minutes."""

LISTING_SLOW = 5.0
LATENCY_HIGH = 0.2
"""Seconds for a listing, and for what is said of one object, above which `doctor` tells: the first is half of what
people wait for, the second is felt in each `ls`."""

METRICS_CLIENTS = 8
METRICS_IDLE = 5.0
METRICS_REQUEST = 8 * 1024
"""Clients that may ask for metrics over HTTP at once, the seconds that each may take, and the bytes it may send: one or
two programs ask, every few seconds."""

STAYING_TOLD = 20
"""Staged keys that `shardfs umount` tells of one by one when they stay on disk; `shardfs staging list` has them all."""

STAGED_SLOW = 0.01
STAGED_SLOW_SHARE = 10
"""A call of the staging area that took longer than STAGED_SLOW seconds (a write into the page cache takes a hundredth)
shows a disk that cannot follow, or a machine that is busy: for so many times as long all calls go to workers. So calls
on the event loop stop it for no more than a tenth of the time, and for 0.2 s at once, as long as the kernel lets a
writer wait. At 5 ms, two busy cores kept all calls in workers for nothing."""

STAGED_LISTED = 1_024
"""Names looked up at a time for a listing with staged files: more than one answer to the kernel can hold."""

STREAM_WORKERS = 32
"""Threads of one `async_map`, unless it is told: as the standard library's executor has it."""

STREAM_AHEAD = 1
"""Items more than threads that an `async_map` has under way or done, unless it is told: with none a thread that is
done before the one whose turn it is waits for it. Two take 7 % less time with one, and no less with two."""

SHUFFLE_BUFFER = 1000
"""Items that a stream's `shuffle` holds, and from how many on the first is given: squirrel-core's figures."""

SHUFFLE_INITIAL = 100

CATALOG_BYTES = 16 << 20
"""A catalog.yaml above that is none that people write, and would take the parser minutes."""

# --- stores far away --------------------------------------------------------------------------------------------------

REMOTE_PART = 8 * MIB
"""Bytes of one ranged request of a large object: above a few MiB more of them in one request are no faster, and below
that the waiting for each shows."""

REMOTE_AHEAD = 4
"""Parts of one object that are fetched at once: with 30 ms of latency and 8 MiB each that is a gigabit, and 32 MiB of
memory for a load."""

REMOTE_REQUESTS = 32
"""Requests to one store at once: S3 answers so many small objects a second at 4,000 (8 at 2,100 to 3,600), and more are
no faster."""

REMOTE_UPLOAD_PART = 64 * MIB
"""Up to this size an object is put in one request, so that its ETag is its MD5; above in parts of this size."""

REMOTE_CONDITIONAL = 1024 * MIB
"""Bytes of one object that is put on a condition: that is one request, whose body is held in memory, and stores take
5 GiB at most."""

REMOTE_WRITTEN = 8
REMOTE_WRITTEN_BYTES = 512 * MIB
"""Objects that were written to a store far away and are kept on disk for the look at them that follows, and their bytes
at most: twice the shards that are stored at once."""

REMOTE_DEADLINE = 60.0
"""Seconds until an operation ends, one way or the other: a reader in the kernel cannot be told sooner, as pyfuse3 does
not pass on that he was killed."""

REMOTE_DEADLINE_LEAST = 0.5
REMOTE_DEADLINE_MOST = 86_400.0
"""What may be asked for: less is no time for a request and a repetition, more is no deadline."""

REMOTE_CONNECT = 5.0
"""Seconds for a connection; a machine that is there answers in one."""

REMOTE_STALL = 10.0
"""Seconds without a byte until a request is given up and asked again."""

REMOTE_STALL_SHARE = 3
"""With a short deadline a stall, and a connection, is this part of it at most, so that asking again fits in."""

REMOTE_RETRIES = 30
"""Times that a request is repeated within its deadline: more than fit into that of a minute, so that a server that
starts anew in that time is waited for."""

REMOTE_DAMAGED = 4
"""Times that it is repeated because what came was damaged: each may be 8 MiB, and a way that damages one goes on so."""

REMOTE_SLOWEST = 1 << 20
"""Bytes a second: what is written has so much more time than the deadline as its size takes at this rate. Reading has
not, as a reader in the kernel waits for it."""

REMOTE_SMALL_PUT = 1 << 20
"""Up to this size a write that gets no answer is a stall like any other: larger ones may take that long to be sent."""

REMOTE_LISTING = 3600.0
"""Seconds for a listing as long as each page of it comes within the deadline: ten million objects are 10,000 pages."""

REMOTE_THREADS = 3 * REMOTE_REQUESTS
"""Threads with a request each, those included whose caller gave up: they end by the client's own time limits."""

REMOTE_THREAD_IDLE = 10.0
"""Seconds until a thread that has nothing to do ends."""

REMOTE_PATIENCE = 2.0
"""Seconds beyond the deadline that a reader of a mount waits for a load, which may have waited for its turn, too."""

BREAKER_FAILURES = 3
"""Operations in a row without any answer until the next ones are refused at once: one may be bad luck."""

BREAKER_PROBE = 5.0
"""Seconds between requests that find out whether the store answers again."""

BREAKER_WAIT = 2.0
"""Seconds for which who starts such a request waits for its answer, to go on at once if there is one."""

HEDGE_LEAST = 2.0
"""Seconds until a read without an answer is asked again beside the first: a store is seldom that slow, a connection
that has died is."""

HEDGE_TIMES = 4
"""It is this much more than 95 of 100 of the last reads took."""

HEDGE_RECENT = 100
"""Reads whose time is known for that."""

HEDGE_SHARE = 3
HEDGE_FREE = 4
"""Per cent of the reads that may be asked twice, and how many anyway: a store that is slow because it is busy must not
be asked twice as much."""

KNOWN_BYTES = 256 * MIB
"""Bytes of what is kept of one answer at most, compressed."""

KNOWN_NAMES = 1_000_000
"""Names of a listing that is kept, at most: writing them down takes a second and 200 MB for a moment."""

KNOWN_FILES = 1000
"""Answers that are kept, of all stores together; the oldest go."""

KNOWN_SMALL = 64 * MIB
"""Bytes of a small object (the index of a data set) that is kept with it."""

REMOTE_BACKOFF = 0.1
REMOTE_BACKOFF_MOST = 5.0
"""Seconds before the first repetition (doubled each time), and the longest; each is drawn between half of it and all,
so that many clients do not come back at once."""

REMOTE_RATIO = 4
"""Raw bytes that a load far away is thought to need for each stored one, until it is known."""

REMOTE_REFRESH = 60.0
"""Seconds for which a listing is believed: listing 100,000 objects is 100 requests."""

REMOTE_LISTED = 10_000_000
"""Objects of a listing at most: a gigabyte of memory."""

DETECTED_INDEX = 1 << 30
"""Bytes of an index.json that is looked at to recognise a data set."""

# --- the cache on disk ------------------------------------------------------------------------------------------------

CACHE_SHARE = 10
"""Per cent of the disk that the cache lies on which it may fill, unless it is told otherwise."""

CACHE_COPY = 64 * 1024
"""Bytes of an object that go into the cache on disk at a time: summed up and written while they are in the processor's
own cache. With 256 KiB and more at once ext4 takes larger pages, which on a virtual machine are mostly such as its host
has yet to give it: 0.4 s of processor time for a gigabyte become 2 to 3."""

CACHE_MIN_FREE = 1 << 30
"""Bytes of that disk that the cache leaves free: others need some to work at all."""

CACHE_AGAIN_NS = 1_000_000_000
"""A file that is used later than this after it came has been used again; sooner is the use that it came for."""

CACHE_AGAIN_SHARE = 80
"""Per cent of the cache that what was used again may fill, so that what is new stays long enough to be used again."""

CACHE_MANY = 100
CACHE_STEPS = 20
"""With more files than CACHE_MANY a full cache makes room for a CACHE_STEPS'th of its size at once: each look at all of
them costs 30 microseconds a file."""

CACHE_ORPHAN_NS = 600_000_000_000
"""A file without a description is somebody's who died, unless it is younger."""

INDEX_PUBLISHED = 4 << 30
"""Bytes of an index that is fetched from a store far away at most: a hundred million files."""

SNAPSHOT = 1 << 30
"""Bytes of a snapshot that is read at most: some millions of keys."""

CACHE_RAW = ("again", "always", "off")
"""Which loaded shards are kept decompressed, where that costs more than reading them: those that had to be loaded more
than once, so that a single pass writes nothing; all; or none."""

RAW_WAITING = 2
RAW_BUDGET_SHARE = 4
"""Loaded shards that are held in memory until their raw bytes are on disk: so many at most, and if there is more than
one, no more than a RAW_BUDGET_SHARE'th of the memory for shards. A disk that is slower than that gets fewer."""

RAW_LIMIT_SHARE = 4
"""Raw bytes of a shard are kept if they are no more than a RAW_LIMIT_SHARE'th of the cache on disk."""

RAW_SEEN = 100_000
"""Shards of which it is remembered that they were loaded before; 200 bytes each."""

PICKLE_WINDOW = 64 * 1024
"""A pickle of plain values is read in pieces of this size; the bytes objects in it are passed over."""

PICKLE_KEY = 1024
"""Parts that a key of a dict may have, if it is a tuple, in a pickle of plain values; and 16 bytes for each where it is
bytes. A key is hashed as often as it is used."""

PICKLE_COLLISIONS = 64
"""Keys of one dict with the same hash: of numbers and tuples any number could be made to have it, and each would be
compared with all others."""

NPY_HEAD = 64 * 1024
"""Bytes at the beginning of a `.npy` inside a blob that are looked at for its head; numpy's own limit is 10,000."""

DATABASE_WAIT = 5.0
"""Seconds to wait for another program that writes into a database of experiments; a commit takes milliseconds."""

DATABASE_COPY = 1 << 30
"""A database that must be recovered is read in a copy, if it has at most so many bytes."""

DATABASE_TIME = 10.0
DATABASE_SPEED = 10 * MIB
"""Seconds, and one more for each so many bytes of a database, after which reading it is given up: SQL can be stored in
a database that never ends."""

DATASTORE_OPEN = 2
"""Files of a datastore held open for each experiment that is open: enough for who reads one after the other."""

DATABASE_TRIES = 5
"""A listing of a database that is written to meanwhile, and keeps no locks, is begun again this often."""

DATASTORE_OUTSIDE = 1_024
"""Experiments of which it is remembered that they refer to files of others: they seldom do."""

# --- light fields beside the index ------------------------------------------------------------------------------------

LIGHT_VALUE = 4 * 1024
"""Bytes of one light value (a text, or a list or dict as JSON) that is kept beside the index: labels, captions and ids
have less, and what has more is a document, which is read in its file."""

LIGHT_JSON = 256 * 1024
"""Bytes of a `.json` member of a WebDataset shard that is looked into for light fields."""

LIGHT_FIELDS = 1_000
LIGHT_NAME = 1_000
"""Light fields of one shard, and characters of their names: more are no fields, but keys of data."""

LIGHT_FETCH = 4 * MIB
"""Raw bytes of a shard that are fetched at once for the light fields in them: half of what is asked for at a time of a
store far away."""

LIGHT_SHARD = 64 * MIB
"""Bytes of different texts of one shard's light fields: 64 of the longest for each of 250 samples..."""

LIGHT_ROW = 256 * MIB
"""...and of all of it unpacked: ten million samples with a number."""

LIGHT_HELD = 32 * MIB
"""Light fields of shards that a mount holds in memory, beside its budget: a hundred shards of 5,000 samples with a few
fields, and the newest in any case."""

LIGHT_MADE = 2
"""Shards whose light fields are made at once for who asks for those of all: one per core, as loads are."""

VIEW_LEVELS = 8
"""Fields of a view `by:FIELD,FIELD`, each a level of directories: more than a path is likely to have."""

VIEW_KEY = 80
"""Bytes of a key's name in front of a sample's, so that with the longest name of a sample there is room for what says
which file it is."""

VIEWS_KNOWN = 256
"""Views looked at in one mount: names below `.shardfs/views` are anybody's, and each has numbers for good."""

VIEWS_MADE = 4
"""Views over all keys that are held in memory at once, about 25 bytes a file each; the others are made again from the
index when somebody looks."""

VIEW_FILES = 200_000_000
"""Files of one view over all keys: some 5 GB of memory."""

VIEW_DIRECTORIES = 200_000
"""Directories of one view `by:`, each of which is an object: a field with more values is no label."""

VIEW_OWNERS = 4_000_000
"""Directories and generated files of views (a key's samples count as one) that have numbers of their own."""

VIEW_BATCH = 64
"""Keys whose columns are made in one go: a hop to a worker costs as much as a small one's, and a mount that ends waits
for a batch."""

VIEW_TEXTS = 32 * MIB
"""Generated texts and layouts of tars held in memory: those of the newest key in any case."""

VIEW_LASTING = 600.0
"""Seconds for which a name in a view over all keys may be believed: the kernel is told when it means another file, but
a notice may be lost where there are too many of them."""

WHERE_LENGTH = 4_000
WHERE_FIELDS = 64
WHERE_DEPTH = 100
"""Characters of a filter, fields that it speaks of, and how deep it is nested: people write a hundredth of that."""

WHERE_VALUE = 2 * MIB
WHERE_PATTERN = 1_000
"""Bytes of a text that is made while a filter is evaluated, and of a pattern: matching may take their product."""

WHERE_SECONDS = 20.0
"""Seconds for all samples of one key: a million take a few, and a filter that takes more is none to wait for."""

WHERE_MASKS = 64 * MIB
"""Bytes of what is remembered of which samples are shown, a bit each: half a billion samples."""

TABLE_ROWS = 10_000
TABLE_GROUP = 100_000
"""Samples that are made into rows at once, and that stand together in a row group of a Parquet file: some tens of
megabytes, and what readers of Parquet like to have."""

TABLE_FIELDS = 2_000
"""Columns of a Parquet file: each is held for a whole row group, and readers take long over more."""

TABLE_BYTES = 8 << 30
"""Bytes of all tables of whole stores together that a mount keeps on disk: thirty million samples of 250."""

TABLE_LOOK = 64 * MIB
"""After so many bytes of a table it is looked whether the disk still has CACHE_MIN_FREE left."""

TABLE_STATES = 16
"""Tables that are kept: the newest of each name, and those that somebody has open."""

TABLE_PATIENCE = 300.0
"""Seconds that who asks for a table waits for it to be made: it goes on meanwhile, and `status` says how far it is. A
million samples out of the index take a few seconds; who waits in the kernel cannot be interrupted."""

VIEW_KEPT = 256 * MIB
"""Bytes of a view's columns that are kept in a file for the next mount: ten million files."""

VIEW_KEEPING = 60.0
"""Seconds between two writings of that file: a store may change all the time."""

# --- looking at mounts: traces, bench, top ----------------------------------------------------------------------------

TRACE_BYTES = 256 * MIB
"""Bytes of one access trace, after which it ends: two million requests, which a loader makes in some minutes."""

TRACE_WAITING = 100_000
"""Requests that may wait for being written to a trace, some 20 MiB; those above are counted and left out."""

TRACE_EVERY = 0.25
"""Seconds between two writes to a trace: so much of it a death of the process takes along."""

TRACE_PATHS = 100_000
"""Paths remembered for a trace, by inode number; all are forgotten when there are more, and worked out again."""

TRACE_LINE = 64 * 1024
"""Bytes of one line of a trace that is played: two paths of 4,096 bytes, each escaped."""

REPLAY_OPEN = 500
"""Files that a replay holds open at once, half of what a process may by default; the oldest is closed for one more."""

BENCH_SECONDS = 10.0
"""Seconds that `shardfs bench` takes in all, unless it is told."""

BENCH_KEYS = 16
"""Keys that it reads, of those that there are: for a median of the time to the first byte."""

BENCH_LEAST = 4
"""Keys for which its time must do, however many files each has: a key that takes more than its part is left there."""

BENCH_FILES = 20_000
BENCH_BYTES = 512 * MIB
"""Files of one key, and bytes in all, that it reads at most: a second or two of what a mount gives from memory."""

BENCH_LISTED = 10_000
"""Names of a directory above the keys among which it chooses: a directory may have a million."""

TOP_EVERY = 2.0
TOP_FIRST = 0.5
TOP_LEAST = 0.1
"""Seconds between two displays of `shardfs top`, until the first one, and the least that may be asked for."""

TOP_KEYS = 3
"""Keys that `shardfs top` and `status` name one by one of those that are being loaded."""

TOP_LOADING = 100
"""Keys under way that a mount tells of: no more are loaded at once in earnest, the rest wait for room."""

THROUGHPUT_BYTES = 16 * MIB
THROUGHPUT_SECONDS = 5.0
"""What `doctor` reads of a store at most, to tell how fast it gives: two parts of a large object."""

THROUGHPUT_LOW = 2 * MIB
"""Bytes a second below which it tells: a shard of 100 MiB takes a minute then."""

STORE_CLOCK = 10.0
"""Seconds in which a server is to tell its time."""
