"""Names of keys, samples and fields as file names and back."""

from __future__ import annotations

import pytest

from shardfs import config, names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "%"),
        ("image", "image"),
        ("a.b", "a.b"),
        (".hidden", "%2Ehidden"),
        (".", "%2E"),
        ("..", "%2E."),
        ("$value", "%24value"),
        ("a$b", "a$b"),
        ("a/b", "a%2Fb"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("a\0b", "a%00b"),
        ("100%", "100%25"),
        ("~", "%7E"),
        ("tab\tnew\nline", "tab%09new%0Aline"),
        ("\x7f\x85", "%7F%C2%85"),
        ("\udcff", "%ED%B3%BF"),
        ("\ud83d\ude00", "%ED%A0%BD%ED%B8%80"),
        ("größe 日本", "größe 日本"),
    ],
)
def test_what_cannot_stand_in_a_name_is_percent_escaped(text: str, name: str) -> None:
    assert names.escape(text) == name
    assert names.unescape(name) == text


@pytest.mark.parametrize("name", ["%G0", "a%", "%2", "%%", "%FF", "%C3"])
def test_a_name_that_escape_never_makes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"%|utf-8"):
        names.unescape(name)


def test_a_sample_id_holds_no_dot() -> None:
    assert names.escape_sample("n01440764_2.1.JPEG") == "n01440764_2%2E1%2EJPEG"
    assert names.escape_sample("") == "%"


def test_a_long_sample_id_leaves_room_for_the_fields() -> None:
    long, other = names.escape_sample("x" * 500), names.escape_sample("x" * 499 + "y")
    assert len(long.encode()) <= config.NAME_KEEP // 2
    assert long != other


@pytest.mark.parametrize(("count", "digits"), [(0, 6), (1, 6), (10**6, 6), (10**6 + 1, 7), (10**9, 9)])
def test_digits_number_the_last_sample_too(count: int, digits: int) -> None:
    assert names.digits_for(count) == digits
    assert len(names.sample_number(max(count - 1, 0), digits)) == digits


def test_shortening_never_leaves_half_an_escape_or_half_a_character() -> None:
    for text in ("/" * 200, "é" * 200, "日" * 150, "a%2" * 100):
        for limit in range(30, 60):
            short = names.shorten(names.escape(text), limit)
            stem, mark, digest = short.rpartition("~")
            assert len(short.encode()) <= limit
            assert mark
            assert len(digest) == 16
            assert "%" not in stem[-1:]
            assert not stem[-2:].startswith("%")


def test_shortening_keeps_what_fits() -> None:
    assert names.shorten("abc", 3) == "abc"


def test_a_file_name_at_exactly_the_limit_is_not_shortened() -> None:
    assert names.file_suffix("f" * 100, (), "npy", 104) == "f" * 100 + ".npy"
    shortened = names.file_suffix("f" * 101, (), "npy", 104)
    assert len(shortened) <= 104
    assert shortened.endswith(".npy")


def test_inner_names_are_escaped_and_the_field_is_not_twice() -> None:
    assert names.file_suffix(names.escape("a/b"), ("c/d", "0"), "bin", 200) == "a%2Fb.c%2Fd.0.bin"


def test_names_that_differ_in_case_or_normal_form_only_are_told_apart() -> None:
    taken: dict[str, int] = {}
    wanted = ["Straße.bin", "STRASSE.bin", "e\u0301.bin", "é.bin", "a.bin", "A.bin", "a.bin"]
    made = [names.tell_apart(suffix, taken, 200) for suffix in wanted]
    assert made == ["Straße.bin", "STRASSE~2.bin", "e\u0301.bin", "é~2.bin", "a.bin", "A~2.bin", "a~3.bin"]


def test_regression_a_name_of_full_length_that_clashes_still_fits() -> None:
    """`~2` behind a name of 255 bytes made one of 257, which no file system call can carry."""
    taken: dict[str, int] = {}
    room = 248
    made = [names.tell_apart(f"{letter * 244}.bin", taken, room) for letter in "aA"]
    assert len(set(map(names.same_name, made))) == 2
    assert all(len(name.encode()) <= room for name in made)
    assert all(name.endswith(".bin") for name in made)


def test_regression_thousands_of_clashing_names_take_no_quadratic_time() -> None:
    """Each new name was tried against all `~2`, `~3` … before: 32,768 spellings of one word took minutes."""
    taken: dict[str, int] = {}
    words = ["".join(chr(97 - 32 * (number >> bit & 1)) for bit in range(15)) for number in range(1 << 15)]
    made = {names.same_name(names.tell_apart(f"{word}.bin", taken, 200)) for word in words}
    assert len(made) == len(words)


def test_the_parts_of_a_key_become_directories() -> None:
    assert names.key_path("train/shard.00003") == ("train", "shard.00003")
    assert names.key_path("") == ("%",)
    assert names.key_path(".git/x~2") == ("%2Egit", "x%7E2")


@pytest.mark.parametrize("part", ["\udcff" * 60, "\x85" * 60, "x" * 251, "日" * 84, "%" * 250])
def test_regression_every_part_of_a_key_is_a_name_of_legal_length(part: str) -> None:
    """60 bytes that are no UTF-8 were escaped to 540 and not shortened."""
    (name,) = names.key_path(part)
    assert len(name.encode()) <= config.NAME_KEEP
