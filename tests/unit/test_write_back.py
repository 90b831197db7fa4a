"""Which keys are due, and what is remembered of those that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardfs.errors import BadSampleError, UnaskedError
from shardfs.staging import ROOT, StagingArea
from shardfs.write_back import WriteBack


def test_what_was_mended_while_its_seal_failed_is_tried_again(tmp_path: Path) -> None:
    """It was taken for what had failed, and waited for one more change that nobody made."""
    area = StagingArea.open("file:///x", root=tmp_path)
    try:
        staged, waiting = area.create("k"), WriteBack(area, appends=False)
        staged.create(ROOT, b"000000.json").close()
        waiting.touched(staged, 0.0)
        assert waiting.due(1.0, 1.0)[0] == [staged]
        waiting.begun(staged)
        waiting.touched(staged, 1.5)
        waiting.failed(staged, BadSampleError("000000.json", "no JSON"), 2.0)
        assert waiting.tried(staged)
        assert waiting.due(1.0, 100.0)[0] == [staged]
        waiting.begun(staged)
        waiting.failed(staged, BadSampleError("000000.json", "no JSON"), 101.0)
        waiting.tried(staged)
        assert waiting.due(1.0, 1000.0)[0] == [], "nothing has changed since"
    finally:
        area.close()


@pytest.mark.parametrize("version", [None, "v"])
def test_a_stored_key_that_waits_for_a_word_is_not_loaded_again_and_again(tmp_path: Path, version: str | None) -> None:
    """The numbers of a new key's samples depend on other keys, so that one is looked at again."""
    area = StagingArea.open("file:///x", root=tmp_path)
    try:
        staged, waiting = area.create("k", base_version=version), WriteBack(area, appends=False)
        staged.create(ROOT, b"000000.json").close()
        waiting.touched(staged, 0.0)
        assert waiting.due(1.0, 1.0)[0] == [staged]
        waiting.begun(staged)
        waiting.failed(staged, UnaskedError("other numbers"), 2.0)
        waiting.tried(staged)
        assert waiting.due(1.0, 1000.0)[0] == ([] if version else [staged])
        assert waiting.problems() == {"k": "other numbers"}
        waiting.touched(staged, 2000.0)
        waiting.tried(staged)
        assert waiting.due(1.0, 2001.0)[0] == [staged]
    finally:
        area.close()
