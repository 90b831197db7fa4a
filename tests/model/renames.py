"""What a rename must come to, in the model."""

from __future__ import annotations

import errno

from tests.model.tree import TEMPORARY, Directory, Fails, File, Model, is_plain


def rename(model: Model, path: str, new: str, exclusive: bool) -> None:
    """As renameat2(2), with RENAME_NOREPLACE if `exclusive`."""
    (above, name), (to, new_name) = model.split(path), model.split(new)
    node, target = above.children.get(name), to.children.get(new_name)
    if node is None:
        raise Fails(errno.ENOENT)
    inside, around = new.startswith(path + "/"), path.startswith(new + "/")
    if inside or around or (exclusive and target is not None):
        wrong = errno.EINVAL if inside else errno.ENOTEMPTY if around else errno.EEXIST
        raise Fails(wrong, errno.EEXIST) if exclusive and target is not None else Fails(wrong)
    if node is target:
        return
    if isinstance(node, Directory) and isinstance(target, File):
        raise Fails(errno.ENOTDIR)
    if isinstance(node, File) and isinstance(target, Directory):
        raise Fails(errno.EISDIR)
    if above.kind == "way" and to.kind == "key":
        raise Fails(errno.EPERM, errno.EXDEV)
    if above.kind == "way" and to.kind == "way":
        assert isinstance(node, Directory)
        assert not isinstance(target, File)
        _directory(model, node, target, new_name)
    elif _staged_in(model, path) is not _staged_in(model, new):
        raise Fails(errno.EXDEV)
    else:
        _within(above, name, to, target, new_name)
    if isinstance(target, File):
        to.remove(new_name)
    del above.children[name]
    to.children[new_name] = node


def _staged_in(model: Model, path: str) -> Directory | None:
    """The key, or the plain directory, that a name is in."""
    found = None
    parts = path.split("/")[:-1]
    for count in range(len(parts) + 1):
        node = model.directory("/".join(parts[:count]))
        if node.kind != "inside":
            found = node
    return None if found is None or found.kind == "way" else found


def _within(above: Directory, name: str, to: Directory, target: File | Directory | None, new_name: str) -> None:
    node = above.children[name]
    if isinstance(target, Directory) and target.children:
        raise Fails(errno.ENOTEMPTY)
    if above.kind == "key":
        assert isinstance(node, File)
        if not node.staged:
            node.staged, node.mode, node.mtime_ns = True, 0o644, None
        node.own |= new_name in TEMPORARY
        above.overlaid = True
        above.dirty |= name not in TEMPORARY or new_name not in TEMPORARY


def _directory(model: Model, node: Directory, target: Directory | None, new_name: str) -> None:
    """Of one that is no part of a staged one."""
    if node.stored is not None or (node.kind == "way" and node.children):
        raise Fails(errno.EXDEV)
    stored = target is not None and target.stored is not None
    if target is not None and target.stored is None and target.children:
        raise Fails(errno.ENOTEMPTY)
    changed = target is not None and (target.dirty and target.differs())
    if target is not None and stored and (changed or (target.overlaid and model.happened == errno.EBUSY)):
        # an empty directory is refused for what it is, too
        raise Fails(errno.EBUSY, *([] if node.children else [errno.EEXIST]))
    plain = is_plain(new_name)
    if node.kind in ("key", "plain") and (plain or node.children):
        _called(model, node, target, plain)
    else:
        if stored:
            raise Fails(errno.EEXIST, errno.EBUSY)
        node.kind, node.mode = ("plain" if plain else "way"), None
    if target is not None:
        target.replaced()


def _called(model: Model, node: Directory, target: Directory | None, plain: bool) -> None:
    """What is staged gets another name, and where that makes a key of it, is stored."""
    if plain:
        node.kind = "plain"
        return
    if any(isinstance(child, Directory) for child in node.children.values()):
        raise Fails(errno.EINVAL)
    stored = None if target is None else target.stored
    if node.kind == "plain" or stored is not None:
        if model.has_writers(node):
            raise Fails(errno.EBUSY)
        if node.lasting():
            model.check_samples(node)
            node.dirty = True
            model.seal(node)
        elif stored is not None:
            raise Fails(errno.EEXIST)
    node.kind, node.mode, node.overlaid = "key", None, True if node.stored is None else node.overlaid or node.dirty
