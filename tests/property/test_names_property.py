"""Names: every text has one, gives itself back, and can be the name of a file."""

from __future__ import annotations

import unicodedata

from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardfs import config, layout, names

RELAXED = settings(deadline=None, max_examples=150)

texts = st.text(st.characters(codec=None), max_size=300) | st.text(
    st.sampled_from("./~%$\0\x1f\x7f\x85\ud800\udfffaA0_-é日"), max_size=300
)


def is_legal(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and not any(letter in "/\0" or unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
        and not name.startswith((".", "$"))
        and len(name.encode("utf-8")) <= config.NAME_MAX
    )


@RELAXED
@given(texts)
@example("%")
@example("%25")
@example("%2E")
@example("\ud83d\ude00")
def test_unescape_is_the_inverse_of_escape(text: str) -> None:
    assert names.unescape(names.escape(text)) == text


@RELAXED
@given(texts, texts)
def test_different_texts_have_different_names(one: str, other: str) -> None:
    assert (names.escape(one) == names.escape(other)) == (one == other)


@RELAXED
@given(texts, st.lists(texts, max_size=3), st.sampled_from(["npy", "bin", "parquet"]), st.integers(134, 253))
def test_what_follows_a_sample_is_a_legal_name_that_fits(field: str, inside: list[str], ext: str, room: int) -> None:
    suffix = names.file_suffix(names.escape(field), tuple(inside), ext, room)
    assert is_legal(suffix)
    assert len(suffix.encode("utf-8")) <= room
    assert suffix.endswith("." + ext) or (suffix == field == ext)


@RELAXED
@given(texts, st.integers(134, 253))
@example("$value.jpg", 200)
@example("a" * 300 + ".jpg", 200)
@example("a." + "b" * 300, 200)
@example("%41", 200)
def test_a_systems_own_name_is_legal_fits_and_can_be_told(text: str, room: int) -> None:
    suffix = names.own_suffix(text, room)
    assert is_legal(f"000000.{suffix}")
    assert not suffix.startswith("$")
    assert len(suffix.encode("utf-8")) <= room
    if len(text.encode("utf-8", "surrogatepass")) * 3 <= room:
        assert suffix == "" or names.unescape(suffix) == text


@RELAXED
@given(texts)
def test_a_sample_id_is_legal_holds_no_dot_and_leaves_room(text: str) -> None:
    name = names.escape_sample(text)
    assert is_legal(name)
    assert "." not in name
    assert len(name.encode("utf-8")) <= config.NAME_KEEP // 2


@RELAXED
@given(texts)
def test_every_part_of_a_key_is_legal(key: str) -> None:
    path = names.key_path(key)
    assert all(is_legal(part) for part in path)
    assert all(len(part.encode("utf-8")) <= config.NAME_KEEP for part in path)
    assert len(path) == key.count("/") + 1


@RELAXED
@given(st.lists(st.text(st.sampled_from("aAbB.~\u00e9E\u0301ßs/"), max_size=250), max_size=20, unique=True))
def test_the_files_of_one_sample_differ_even_where_case_does_not_count(fields: list[str]) -> None:
    sample = {field: b"" if at % 2 else [b"", {field: b""}] for at, field in enumerate(fields)}
    suffixes = [plan.suffix for plan in layout.lay_out(sample, memoryview(b""), "png", 6)]
    assert len({names.same_name(suffix) for suffix in suffixes}) == len(suffixes)
    assert all(is_legal("000000." + suffix) for suffix in suffixes)


@RELAXED
@given(st.lists(texts, max_size=8), st.integers(20, 250))
def test_telling_apart_gives_each_wish_a_name_of_its_own(wishes: list[str], width: int) -> None:
    taken: dict[str, int] = {}
    room = 253
    stems = [names.shorten(names.escape(wish), width) for wish in (*wishes, *wishes)]
    made = [names.tell_apart(f"{stem}.bin"[-room:], taken, room) for stem in stems]
    assert len({names.same_name(name) for name in made}) == len(made)
