"""The members of a tar: names, and where their headers and contents lie. Reads headers only, and writes them.

Knows nothing of samples, of stores, or of how the tar is stored. Sources: POSIX.1-2001 `pax` (ustar and extended
headers), GNU tar's manual ("Basic Tar Format"); in doubt what Python's tarfile 3.11 does, with which WebDataset reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shardfs import config
from shardfs.errors import BadSettingError, DamagedShardError
from shardfs.values import Buffer

BLOCK = 512
RECORD = 20 * BLOCK
"""What a tar is filled up to."""

Read = Callable[[int, int], Buffer]
"""The bytes from `start` to `end`."""

_REGULAR = frozenset((b"0", b"\0", b"7"))
_KINDS = {b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a FIFO", b"S": "a sparse file"}
_NO_CONTENT = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
"""Types whose size means no bytes behind the header: links and directories may have one all the same."""


@dataclass(slots=True)
class Member:
    """A file in a tar."""

    name: str
    """As UTF-8, other bytes as lone surrogates."""
    start: int
    """Where its first header begins, extended ones included."""
    offset: int
    """Where its content begins."""
    length: int
    end: int
    """Where the next member's headers begin."""
    link: bool = False
    """True for a hard link: content and length are those of the member it names."""


@dataclass(slots=True)
class Listing:
    """What a tar holds."""

    members: list[Member] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is not shown, or not as one would think, and why."""
    unkept: str | None = None
    """Why the tar cannot be written anew without losing something of it."""

    def note(self, text: str, unkept: bool = True) -> None:
        if len(self.notes) < config.ERRORS_KEPT:
            self.notes.append(text)
        if unkept:
            self.unkept = self.unkept or text


def listing(read: Read, size: int) -> Listing:
    """All members of a tar of `size` bytes. DamagedShardError, and the errors of `read`."""
    return _Scan(read, size).listing()


class _Scan:
    """One walk through the headers."""

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size
        self._window: Buffer = memoryview(b"")
        self._window_at = 0
        self._found = Listing()
        self._by_name: dict[str, Member] = {}

    def listing(self) -> Listing:
        at, smallest = 0, True
        while True:
            block = self._block(at, smallest)
            if block is None:
                self._found.note("the tar has no end: it may have had more members", unkept=False)
                break
            if not any(block):
                self._behind(at)
                break
            behind = self._member(at, block)
            smallest = behind - at < config.TAR_WINDOW
            at = behind
            if len(self._found.members) > config.TAR_MEMBERS:
                raise DamagedShardError(f"more than {config.TAR_MEMBERS} members", at)
        return self._found

    def _block(self, at: int, windowed: bool) -> bytes | None:
        """The header at `at`; None at the end of the file."""
        if at >= self._size:
            return None
        if at + BLOCK > self._size:
            raise DamagedShardError("the tar is cut off in a header", at)
        inside = at - self._window_at
        if not 0 <= inside <= len(self._window) - BLOCK:
            self._window = self._read(at, min(at + (config.TAR_WINDOW if windowed else BLOCK), self._size))
            self._window_at, inside = at, 0
        return bytes(self._window[inside : inside + BLOCK])

    def _member(self, at: int, block: bytes) -> int:
        """Note the member whose headers begin at `at`; where the next one's do."""
        start = at
        long: dict[bytes, bytes] = {}
        records: dict[str, bytes] = {}
        while True:
            _check(block, at)
            kind, size = block[156:157], _number(block[124:136], at)
            if kind not in b"xXgLK":
                break
            if at + BLOCK + size > self._size:
                raise DamagedShardError("the tar is cut off in an extended header", at)
            if size > config.TAR_HEADER:
                raise DamagedShardError(f"an extended header of {size} bytes", at)
            data = bytes(self._read(at + BLOCK, at + BLOCK + size))
            if kind in b"LK":
                long[kind] = data.partition(b"\0")[0]
            elif kind != b"g":
                records |= _pax(data, at)
            elif _pax(data, at).keys() - {"comment", "mtime", "atime", "ctime"}:
                self._found.note("it has a header for all members, which is not looked at")
            at += BLOCK + -(-size // BLOCK) * BLOCK
            following = self._block(at, True)
            if following is None or not any(following):
                raise DamagedShardError("the tar is cut off behind an extended header", at)
            block = following
        if "size" in records:
            size = _decimal(records["size"], at)
        return self._put(_name(block, long, records), block, start, at + BLOCK, size, _link(block, long, records))

    def _put(self, name: bytes, block: bytes, start: int, offset: int, size: int, link: bytes | None) -> int:
        kind = block[156:157]
        text = name.decode("utf-8", "surrogateescape")
        held = 0 if kind in _NO_CONTENT or (kind == b"\0" and name.endswith(b"/")) else size
        if offset + held > self._size:
            raise DamagedShardError(f"the tar is cut off in {text[:200]!r}", start)
        end = offset + -(-held // BLOCK) * BLOCK
        if kind == b"5" or (kind == b"\0" and name.endswith(b"/")):
            return end
        if link is None:
            self._found.note(f"{text[:200]} is a sparse file: not shown")
        elif kind in _REGULAR:
            self._keep(Member(text, start, offset, size, end))
        elif kind == b"1" and (target := self._by_name.get(link.decode("utf-8", "surrogateescape"))) is not None:
            self._found.note(f"{text[:200]} is a hard link: shown as {target.name[:200]}")
            self._keep(Member(text, start, target.offset, target.length, end, link=True))
        elif kind == b"1":
            self._found.note(f"{text[:200]} is a hard link to no member before it: not shown")
        else:
            self._found.note(f"{text[:200]} is {_KINDS.get(kind, f'of type {kind!r}')}: not shown")
        return end

    def _keep(self, member: Member) -> None:
        self._by_name[member.name] = member
        self._found.members.append(member)

    def _behind(self, at: int) -> None:
        """Whether there is anything behind the first block of zeros, where all readers of tars stop."""
        rest = self._size - at
        if rest > config.TAR_BEHIND or any(bytes(self._read(at, self._size))):
            self._found.note("there are bytes behind the end of the tar, perhaps another one: not shown")


def _check(block: bytes, at: int) -> None:
    """DamagedShardError for what is no header, by its checksum, which old tars made of signed bytes."""
    wanted = _number(block[148:156], at)
    plain = sum(block) - sum(block[148:156]) + 8 * 32
    if wanted != plain and wanted != plain - 256 * sum(byte > 127 for byte in block[:148] + block[156:]):
        raise DamagedShardError("no header of a member, by its checksum", at)


def _number(data: bytes, at: int) -> int:
    """Octal digits, or a number to base 256 as GNU tar writes large ones."""
    if data[0] == 0o200:
        return int.from_bytes(data[1:], "big")
    text = data.partition(b"\0")[0].strip()
    if not text:
        return 0
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise DamagedShardError("a header of a member without its numbers", at)
    return int(text, 8)


def _decimal(data: bytes, at: int) -> int:
    if not data.isdigit() or len(data) > 19:
        raise DamagedShardError("a size that is no number", at)
    return int(data)


def _pax(data: bytes, at: int) -> dict[str, bytes]:
    """The records of an extended header: `<length> <keyword>=<value>` and a newline, each."""
    records: dict[str, bytes] = {}
    while data.strip(b"\0"):
        digits, space, _ = data[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        keyword, equals, value = record.partition(b"=")
        if not space or not equals or not record.endswith(b"\n") or length > len(data):
            raise DamagedShardError("an extended header that is broken", at)
        records[keyword.decode("utf-8", "replace")] = value[:-1]
        data = data[length:]
    return records


def _name(block: bytes, long: dict[bytes, bytes], records: dict[str, bytes]) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return records.get("path", long.get(b"L", name))


def _link(block: bytes, long: dict[bytes, bytes], records: dict[str, bytes]) -> bytes | None:
    """What a link names; None for a file whose content is not what lies behind its header."""
    if any(keyword.startswith("GNU.sparse.") for keyword in records):
        return None
    return records.get("linkpath", long.get(b"K", block[157:257].partition(b"\0")[0]))


# --- writing ------------------------------------------------------------------------------------------------------


def header(name: str, length: int) -> bytes:
    """The headers of a file of `length` bytes, the same whoever writes it and when: ustar, mode 0444, owner 0, time 0;
    a PAX header in front where ustar has no room. BadSettingError for what no tar can name."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise BadSettingError(f"a member cannot be called {name[:100]!r}") from error
    if not raw or b"\0" in raw:
        raise BadSettingError(f"a member cannot be called {name[:100]!r}")
    records = b""
    prefix, short = b"", raw
    if len(raw) > 100:
        cut = raw.rfind(b"/", 0, 156)
        if cut > 0 and 0 < len(raw) - cut - 1 <= 100:
            prefix, short = raw[:cut], raw[cut + 1 :]
        else:
            records += _record(b"path", raw)
            short = raw[:100]
            if raw.decode("utf-8", "replace").encode("utf-8") != raw:
                records = _record(b"hdrcharset", b"BINARY") + records
    if length >= 8 << 30:
        records += _record(b"size", b"%d" % length)
    made = b""
    if records:
        made = _header(b"././@PaxHeader", b"", len(records), b"x") + records + padding(len(records))
    return made + _header(short, prefix, length if length < 8 << 30 else 0, b"0")


def padding(length: int) -> bytes:
    """What fills content of `length` bytes up to a whole block."""
    return bytes(-length % BLOCK)


def ending(length: int) -> bytes:
    """What ends a tar of `length` bytes: two empty blocks, and what fills a record."""
    return bytes(2 * BLOCK + -(length + 2 * BLOCK) % RECORD)


def _record(keyword: bytes, value: bytes) -> bytes:
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest) + 1
    while length != len(b"%d" % length) + len(rest):
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def _header(name: bytes, prefix: bytes, length: int, kind: bytes) -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[100:148] = b"0000444\0" + b"0000000\0" * 2 + b"%011o\0" % length + b"%011o\0" % 0
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[329:345] = b"0000000\0" * 2
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
