"""The directories above the samples."""

from __future__ import annotations

from shardfs import inodes, names
from shardfs.model import Entry, Key, Version
from shardfs.tree import Directory, KeyDirectory, KeyTree


def entry(key: str, version: str = "1", stored: int = 10, mtime: int = 5) -> Entry:
    return Entry(Key(key), Version(version), stored, mtime)


def shown(tree: KeyTree) -> dict[str, str | None]:
    """Path -> key of every directory."""
    found: dict[str, str | None] = {}

    def walk(directory: Directory, path: str) -> None:
        for name, child in directory.children.items():
            below = f"{path}{name.decode()}"
            assert tree.directory(child.inode) is child
            assert child.parent == directory.inode
            assert tree.walk(below) == (child, "")
            if isinstance(child, KeyDirectory):
                assert child.name == name
                assert tree.slot(child.slot) is child
                assert tree.current(child.entry.key) is child
                found[below] = child.entry.key
            else:
                found[below] = None
                walk(child, below + "/")

    walk(tree.root, "")
    return found


def numbers(tree: KeyTree) -> dict[str, tuple[int, int]]:
    return {key.entry.key: (key.inode, key.slot) for key in tree.slots}


def test_a_tree_without_keys_is_an_empty_root() -> None:
    tree = KeyTree([])
    assert shown(tree) == {}
    assert tree.directory(inodes.ROOT) is tree.root
    assert tree.walk("") == tree.walk("/") == (tree.root, "")
    assert tree.walk("x") == (None, "x")


def test_keys_with_slashes_are_nested() -> None:
    tree = KeyTree([entry("top"), entry("train/a"), entry("train/b"), entry("train/deep/er/c")])
    assert shown(tree) == {
        "top": "top",
        "train": None,
        "train/a": "train/a",
        "train/b": "train/b",
        "train/deep": None,
        "train/deep/er": None,
        "train/deep/er/c": "train/deep/er/c",
    }
    assert tree.stored_bytes == 40


def test_a_key_that_is_also_another_keys_directory_gets_a_name_of_its_own() -> None:
    for keys in (["a", "a/b", "a/b/c"], ["a/b/c", "a/b", "a"], ["a/b", "a", "a/b/c"]):
        assert shown(KeyTree([entry(key) for key in keys])) == {
            "a": None,
            "a~2": "a",
            "a/b": None,
            "a/b~2": "a/b",
            "a/b/c": "a/b/c",
        }


def test_keys_with_hostile_names_stay_below_the_root_and_apart() -> None:
    keys = [
        "",
        "/",
        "..",
        "../x",
        ".",
        ".shardfs",
        "a~2",
        "a",
        "a/b",
        "a%7E2",
        "x" * 250,
        "x" * 251,
        "\udcff" * 80,
        "a\0",
    ]
    tree = KeyTree([entry(key) for key in keys])
    found = shown(tree)
    assert sorted(key for key in found.values() if key is not None) == sorted(keys)
    for path in found:
        for part in path.split("/"):
            assert part not in ("", ".", "..")
            assert not part.startswith(".")
            assert len(part.encode()) <= 255
            assert "\0" not in part


def test_the_same_listing_gives_the_same_numbers() -> None:
    listing = [entry(key) for key in ("a", "a/b", "b/c/d", "b/e", "f")]
    one, other = KeyTree(listing), KeyTree(iter(listing))
    assert numbers(one) == numbers(other)
    assert [slot for _, slot in numbers(one).values()] == [1, 2, 3, 4, 5]
    taken = [inode for inode, _ in numbers(one).values()]
    assert len(set(taken)) == 5
    assert inodes.ROOT not in taken
    assert all(inodes.slot_of(inode) == 0 for inode in taken)


def test_a_file_inside_a_key_is_left_over_when_walking() -> None:
    tree = KeyTree([entry("train/a")])
    found, rest = tree.walk("/train//a/000000.json")
    assert isinstance(found, KeyDirectory)
    assert (found.entry.key, rest) == ("train/a", "000000.json")
    assert tree.walk("train/none/x") == (None, "none/x")
    assert tree.walk("train/a/x/y")[1] == "x/y"


def test_a_directory_is_as_young_as_its_youngest_key() -> None:
    tree = KeyTree([entry("d/a", mtime=5), entry("d/e/b", mtime=9), entry("d/c", mtime=7)])
    found = {path: tree.walk(path)[0] for path in ("", "d", "d/e")}
    assert all(isinstance(directory, Directory) and directory.mtime_ns == 9 for directory in found.values())


def test_numbers_of_directories_that_are_not_there_are_none() -> None:
    tree = KeyTree([entry("a")])
    for number in (0, 99, -1):
        assert tree.directory(number) is None
        assert tree.slot(number) is None


# --- fresh listings ---------------------------------------------------------------------------------------------


def test_a_listing_without_news_changes_nothing() -> None:
    listing = [entry("a"), entry("a/b"), entry("c")]
    tree = KeyTree(listing)
    before = (numbers(tree), shown(tree))
    assert tree.update(listing) == []
    assert (numbers(tree), shown(tree)) == before


def test_a_replaced_key_keeps_its_name_and_gets_new_numbers() -> None:
    tree = KeyTree([entry("a", stored=10), entry("a/b")])
    old = tree.current(Key("a"))
    assert old is not None
    old.lookups = 2
    assert tree.update([entry("a", "2", stored=30), entry("a/b")]) == [old]
    new = tree.current(Key("a"))
    assert new is not None
    assert old.superseded
    assert (new.name, new.entry.version) == (b"a~2", "2")
    assert new.inode != old.inode
    assert new.slot != old.slot
    assert shown(tree) == {"a": None, "a~2": "a", "a/b": "a/b"}
    assert tree.stored_bytes == 40
    # the old numbers answer until the kernel has forgotten them, and are never given again
    assert tree.slot(old.slot) is old
    tree.forget(old, 1)
    assert tree.directory(old.inode) is old
    tree.forget(old, 1)
    assert tree.directory(old.inode) is None
    assert tree.slot(old.slot) is None
    tree.update([entry("a", "3"), entry("a/b"), entry("z")])
    assert old.inode not in [inode for inode, _ in numbers(tree).values()]


def test_keys_come_and_go() -> None:
    tree = KeyTree([entry("a"), entry("b")])
    before = numbers(tree)
    (gone,) = tree.update([entry("b"), entry("c/d")])
    assert gone.entry.key == "a"
    assert shown(tree) == {"b": "b", "c": None, "c/d": "c/d"}
    assert numbers(tree)["b"] == before["b"]
    assert tree.slot(gone.slot) is None
    assert tree.stored_bytes == 20
    tree.update([entry("a"), entry("b"), entry("c/d")])
    assert numbers(tree)["a"] != before["a"]


def test_a_name_once_shown_stays() -> None:
    tree = KeyTree([entry("a")])
    tree.update([entry("a"), entry("a/b")])
    assert shown(tree) == {"a": "a", "a~2": None, "a~2/b": "a/b"}
    assert names.key_path("a/b") == ("a", "b")
    tree.update([entry("a"), entry("a/b"), entry("a/c")])
    assert shown(tree)["a~2/c"] == "a/c"
