"""PNG and TIFF files against Pillow, an independent reader, for each mode that it has."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
import pytest

from shardfs import config, images, pictures, values
from shardfs.errors import DamagedShardError, MissingExtraError
from shardfs.pictures import Picture

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
# what Pillow opens a TIFF of ours as, where that is not the mode itself
OTHER_TIFF = {"HSV": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "I;16L": "I;16", "I;16N": "I;16"}
SIZES = [(1, 1), (7, 5), (16, 9), (9, 300), (301, 211), (70_000, 2), (65_534, 3), (65_535, 1), (1, 70_000)]


def pixels_of(width: int, height: int, mode: str, seed: int = 1) -> bytes:
    """Pixels as `tobytes` would give them: in mode 1 the bits that fill up a row are zero."""
    row = images.row_bytes(width, mode)
    data = np.random.default_rng(seed).integers(0, 256, (height, row), dtype=np.uint8)
    if mode == "1" and width % 8:
        data[:, -1] &= 0xFF << (8 - width % 8) & 0xFF
    if mode == "F":
        data = data.view("<u4").astype("<f4").view(np.uint8)
    return data.tobytes()


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, read by other code than the one under test."""
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + content)
        found.append((kind, content))
        at += 12 + length
    return found


def join(chunks: list[tuple[bytes, bytes]]) -> bytes:
    made = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        made += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return made


def test_the_table_of_modes_is_pillows() -> None:
    assert set(images.BITS) == set(PIL.Image.MODES)
    assert set(PNG_MODES) == images.PNG_MODES


@pytest.mark.parametrize("mode", sorted(images.BITS))
def test_rows_have_the_length_pillow_gives_them(mode: str) -> None:
    for width in (1, 7, 8, 9, 31):
        assert images.row_bytes(width, mode) * 3 == len(PIL.Image.new(mode, (width, 3)).tobytes())


@pytest.mark.parametrize("mode", PNG_MODES)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_png_has_the_predicted_size_and_pillow_reads_the_same_pixels(mode: str, width: int, height: int) -> None:
    pixels = pixels_of(width, height, mode)
    data = images.png(width, height, mode, pixels, f"pil:{mode}")
    assert type(data) is bytes
    assert len(data) == images.png_size(width, height, mode, f"pil:{mode}")
    with PIL.Image.open(io.BytesIO(data)) as picture:
        assert (picture.mode, picture.size, picture.tobytes()) == (mode, (width, height), pixels)
    assert images.unpng(data) == (width, height, mode, pixels)
    assert images.read_mark(data) == f"pil:{mode}"


def test_the_mark_stands_behind_the_header_and_is_private_ancillary_and_unsafe_to_copy() -> None:
    data = images.png(4, 3, "RGB", bytes(36), "ndarray")
    kinds = [kind for kind, _ in chunks_of(data)]
    assert kinds == [b"IHDR", b"shRD", b"IDAT", b"IEND"]
    assert [bool(letter & 0x20) for letter in kinds[1]] == [True, True, False, False]
    assert chunks_of(data)[1][1] == b"ndarray"


def test_the_palette_is_a_ramp_of_greys() -> None:
    data = images.png(2, 1, "P", b"\x00\xc8", "pil:P")
    with PIL.Image.open(io.BytesIO(data)) as picture:
        assert picture.convert("RGB").tobytes() == b"\0\0\0\xc8\xc8\xc8"


def test_all_blocks_are_stored_and_only_the_last_is_final() -> None:
    for width, height in [(300, 500), (70_000, 3), (5, 2)]:
        data = images.png(width, height, "RGB", bytes(width * height * 3), "x")
        stream = dict(chunks_of(data))[b"IDAT"]
        assert stream[:2] == b"\x78\x01"
        at, flags, stored = 2, [], b""
        while at < len(stream) - 4:
            final, length, inverse = struct.unpack_from("<BHH", stream, at)
            assert length ^ inverse == 0xFFFF
            flags.append(final)
            stored += stream[at + 5 : at + 5 + length]
            at += 5 + length
        assert flags == [0] * (len(flags) - 1) + [1]
        assert len(stored) == height * (3 * width + 1)
        assert struct.unpack(">I", stream[at:])[0] == zlib.adler32(stored)


def test_pixels_may_be_any_buffer_at_any_position() -> None:
    pixels = pixels_of(33, 20, "I;16")
    for offset in (0, 1, 3):
        raw = memoryview(bytearray(b"x" * offset + pixels + b"y")).toreadonly()
        data = images.png(33, 20, "I;16", raw[offset : offset + len(pixels)], "m")
        assert images.unpng(memoryview(data))[3] == pixels


@pytest.mark.parametrize(
    ("width", "height", "mode"),
    [(0, 3, "L"), (3, 0, "L"), (-1, 3, "L"), (3, 3, "F"), (3, 3, "XYZ"), (1 << 16, 1 << 15, "L")],
)
def test_what_png_cannot_hold_is_refused(width: int, height: int, mode: str) -> None:
    with pytest.raises(ValueError, match=r"no PNG for|unknown mode"):
        images.png_size(width, height, mode, "m")
    with pytest.raises(ValueError, match=r"no PNG for|unknown mode"):
        images.png(width, height, mode, b"", "m")


@pytest.mark.parametrize("count", [0, 26, 28, 54])
def test_a_wrong_number_of_pixels_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} bytes for 3 x 3 pixels"):
        images.png(3, 3, "RGB", bytes(count), "m")


def test_a_mark_may_be_any_text() -> None:
    data = images.png(1, 1, "L", b"a", "größe")
    assert len(data) == images.png_size(1, 1, "L", "größe")
    assert images.read_mark(data) == "größe"


# --- reading PNGs back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", PNG_MODES)
def test_any_deflate_and_any_number_of_idat_chunks_can_be_read_back(mode: str) -> None:
    pixels = pixels_of(300, 200, mode)
    chunks = chunks_of(images.png(300, 200, mode, pixels, "m"))
    stream = zlib.compress(zlib.decompress(dict(chunks)[b"IDAT"]), 9)
    third = len(stream) // 3
    parts = [(b"IDAT", part) for part in (stream[:third], b"", stream[third : 2 * third], stream[2 * third :])]
    rest = [chunk for chunk in chunks if chunk[0] not in (b"IDAT", b"IEND")]
    assert images.unpng(join([*rest, *parts, (b"IEND", b"")])) == (300, 200, mode, pixels)


def changed(place: str) -> bytes:
    header, mark, _, end = chunks_of(images.png(2, 2, "RGB", b"abcdefghijkl", "m"))
    lines = b"\0abcdef\0ghijkl"
    size = struct.pack(">II", 2, 2)
    made = {
        "filtered rows": [header, mark, (b"IDAT", zlib.compress(b"\1abcdef\0ghijkl")), end],
        "more pixels": [header, mark, (b"IDAT", zlib.compress(lines + b"\0")), end],
        "a bomb": [header, mark, (b"IDAT", zlib.compress(bytes(3_000_000))), end],
        "fewer pixels": [header, mark, (b"IDAT", zlib.compress(lines[:-1])), end],
        "no pixels": [header, mark, end],
        "cut stream": [header, mark, (b"IDAT", zlib.compress(lines)[:-1]), end],
        "bytes behind the stream": [header, mark, (b"IDAT", zlib.compress(lines) + b"x"), end],
        "a chunk behind the stream": [header, mark, (b"IDAT", zlib.compress(lines)), (b"IDAT", b"x"), end],
        "no zlib": [header, mark, (b"IDAT", b"abcdef"), end],
        "depth 16": [(b"IHDR", size + b"\x10\2\0\0\0"), mark, (b"IDAT", zlib.compress(lines)), end],
        "interlaced": [(b"IHDR", size + b"\x08\2\0\0\1"), mark, (b"IDAT", zlib.compress(lines)), end],
        "too large": [(b"IHDR", struct.pack(">II", 1 << 30, 1 << 30) + b"\x08\2\0\0\0"), mark, end],
        "no sides": [(b"IHDR", struct.pack(">II", 0, 0) + b"\x08\2\0\0\0"), mark, end],
        "transparency": [header, mark, (b"tRNS", b"abcdef"), (b"IDAT", zlib.compress(lines)), end],
        "a palette": [header, mark, (b"PLTE", b"abc"), (b"IDAT", zlib.compress(lines)), end],
        "another palette": [(b"IHDR", size + b"\x08\3\0\0\0"), (b"PLTE", b"abc"), (b"IDAT", b""), end],
        "no header": [mark, (b"IDAT", zlib.compress(lines)), end],
        "two headers": [header, header, (b"IDAT", zlib.compress(lines)), end],
        "short header": [(b"IHDR", size), (b"IDAT", zlib.compress(lines)), end],
        "nothing": [],
    }
    return join(made[place])


@pytest.mark.parametrize(
    "place",
    """filtered rows/more pixels/a bomb/fewer pixels/no pixels/cut stream/bytes behind the stream/no zlib/depth 16
    a chunk behind the stream/interlaced/too large/no sides/transparency/a palette/another palette/no header
    two headers/short header/nothing""".replace("\n    ", "/").split("/"),
)
def test_other_pngs_are_refused(place: str) -> None:
    with pytest.raises(ValueError, match="PNG"):
        images.unpng(changed(place))


def test_each_cut_and_each_flipped_byte_is_noticed() -> None:
    data = images.png(3, 2, "RGB", bytes(range(18)), "m")
    for length in range(len(data)):
        with pytest.raises(ValueError, match="PNG"):
            images.unpng(data[:length])
    for at in range(len(data)):
        with pytest.raises(ValueError, match="PNG"):
            images.unpng(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
    with pytest.raises(ValueError, match="behind the end"):
        images.unpng(data + b"x")


def test_only_our_pngs_have_a_mark() -> None:
    foreign = io.BytesIO()
    PIL.Image.new("RGB", (3, 3)).save(foreign, "PNG")
    for data in (b"", b"\xff\xd8\xff", foreign.getvalue(), changed("nothing"), images.png(1, 1, "L", b"a", "m")[:20]):
        assert images.read_mark(data) is None


def test_a_picture_that_pillow_saved_again_has_lost_its_mark() -> None:
    data = images.png(8, 8, "RGB", pixels_of(8, 8, "RGB"), "ndarray")
    again = io.BytesIO()
    with PIL.Image.open(io.BytesIO(data)) as picture:
        picture.save(again, "PNG")
    assert images.read_mark(again.getvalue()) is None


# --- TIFF ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", sorted(images.BITS))
@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 5), (64, 33), (1, 3000)])
def test_pillow_opens_a_tiff_of_each_mode(mode: str, width: int, height: int) -> None:
    pixels = pixels_of(width, height, mode)
    header = images.tiff_header(width, height, mode)
    with PIL.Image.open(io.BytesIO(header + pixels)) as picture:
        assert isinstance(picture, PIL.TiffImagePlugin.TiffImageFile)
        assert (picture.size, picture.mode) == ((width, height), OTHER_TIFF.get(mode, mode))
        assert picture.tag_v2[270] == f"shardfs pil:{mode}"
        assert picture.tag_v2[305] == "shardfs"
        assert picture.tag_v2[273] == (len(header),)
        assert picture.tag_v2[279] == (len(pixels),)
        if mode not in ("RGBX", "RGBa"):  # these Pillow turns into RGB and RGBA while it reads
            assert picture.tobytes() == pixels


def test_a_tiff_says_what_its_fourth_sample_is() -> None:
    extra = {}
    for mode in ("RGBA", "RGBa", "RGBX", "LA", "La", "PA"):
        with PIL.Image.open(io.BytesIO(images.tiff_header(2, 2, mode) + bytes(16))) as picture:
            assert isinstance(picture, PIL.TiffImagePlugin.TiffImageFile)
            extra[mode] = picture.tag_v2[338]
    assert extra == {"RGBA": (2,), "RGBa": (1,), "RGBX": (0,), "LA": (2,), "La": (1,), "PA": (2,)}


@pytest.mark.parametrize(
    ("width", "height", "mode"), [(0, 1, "F"), (1, 0, "F"), (1 << 16, 1 << 15, "F"), (1, 1, "BGR;15")]
)
def test_what_tiff_cannot_hold_is_refused(width: int, height: int, mode: str) -> None:
    with pytest.raises(ValueError, match=r"no TIFF for|unknown mode"):
        images.tiff_header(width, height, mode)


# --- the leaf -----------------------------------------------------------------------------------------------------


def record(mode: bytes, width: int, height: int, pixels: bytes) -> bytes:
    return struct.pack("<III", width, height, len(mode)) + mode + pixels


def shown(leaf: Picture | values.Blob, raw: memoryview) -> bytes:
    content = leaf.content(raw, "png")
    if content.render is not None:
        data = content.render()
    else:
        data = content.prefix + bytes(raw[content.offset : content.offset + content.size - len(content.prefix)])
    assert len(data) == content.size
    return data


@pytest.mark.parametrize("mode", sorted(images.BITS))
def test_a_record_becomes_a_picture_and_a_file(mode: str) -> None:
    pixels = pixels_of(13, 9, mode)
    raw = memoryview(b"in front" + record(mode.encode(), 13, 9, pixels) + b"behind")
    leaf = pictures.parse(raw, 8, len(raw) - 14)
    assert isinstance(leaf, Picture)
    assert leaf.content(raw, "npy").ext == ("png" if mode in PNG_MODES else "tif")
    image = leaf.value(raw)
    assert (image.mode, image.size, image.tobytes()) == (mode, (13, 9), pixels)
    with PIL.Image.open(io.BytesIO(shown(leaf, raw))) as opened:
        assert (opened.mode, opened.size) == (OTHER_TIFF.get(mode, mode), (13, 9))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes are too few"),
        (b"\1\0\0\0\1\0\0\0\1\0\0", "11 bytes are too few"),
        (struct.pack("<III", 1, 1, 1), "a mode whose name has 1 bytes"),
        (struct.pack("<III", 1, 1, 1 << 31) + b"L", "a mode whose name has 2147483648 bytes"),
        (record(b"\xff", 1, 1, b"a"), "can't decode"),
        (record(b"BGR", 1, 1, b"abc"), "unknown mode 'BGR'"),
        (record(b"", 1, 1, b"abc"), "unknown mode ''"),
        (record(b"RGB", 0, 5, b""), "0 x 5"),
        (record(b"RGB", 5, 0, b""), "5 x 0"),
        (record(b"RGB", 2, 2, b"x" * 11), "11 bytes for 2 x 2"),
        (record(b"RGB", 2, 2, b"x" * 13), "13 bytes for 2 x 2"),
        (record(b"RGB", (1 << 32) - 1, (1 << 32) - 1, b"x"), "1 bytes for"),
    ],
)
def test_a_record_that_is_no_picture_is_its_bytes_and_a_note(data: bytes, reason: str) -> None:
    raw = memoryview(b"front" + data)
    leaf = pictures.parse(raw, 5, len(data))
    assert isinstance(leaf, values.Blob)
    assert leaf.note is not None
    assert reason in leaf.note
    content = leaf.content(raw, "png")
    assert (content.ext, content.size, content.note) == ("bin", len(data), leaf.note)
    assert shown(leaf, raw) == leaf.value(raw) == data


def test_a_picture_too_large_for_png_is_a_tiff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PNG_MAX", 10)
    raw = memoryview(record(b"RGB", 2, 2, b"abcdefghijkl"))
    leaf = pictures.parse(raw, 0, len(raw))
    assert leaf.content(raw, "png").ext == "tif"
    with PIL.Image.open(io.BytesIO(shown(leaf, raw))) as picture:
        assert (picture.mode, picture.tobytes()) == ("RGB", b"abcdefghijkl")


def test_without_pillow_the_file_is_there_and_the_image_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    raw = memoryview(record(b"L", 2, 2, b"abcd"))
    leaf = pictures.parse(raw, 0, len(raw))
    assert shown(leaf, raw).startswith(b"\x89PNG")
    with pytest.raises(MissingExtraError, match=r"pip install 'shardfs\[images\]'"):
        leaf.value(raw)


def test_a_mode_this_pillow_lacks_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def frombytes(*_: object) -> None:
        raise ValueError("unrecognized image mode")

    monkeypatch.setattr(PIL.Image, "frombytes", frombytes)
    with pytest.raises(DamagedShardError, match="no picture of mode L"):
        Picture(0, 1, "L", 1, 1).value(memoryview(b"a"))


def test_an_array_and_its_png_are_the_same_pixels() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    leaf = values.Array(3, array.dtype, array.shape)
    raw = memoryview(b"..." + array.tobytes())
    content = leaf.content(raw, "png")
    assert content.render is not None
    data = content.render()
    assert (content.ext, content.size) == ("png", len(data))
    assert images.read_mark(data) == "ndarray"
    assert images.unpng(data) == (4, 5, "RGBA", array.tobytes())
