"""A real writable mount against the model: 2,000 operations, other ones each time."""

from __future__ import annotations

import pytest

from tests.model import play

pytestmark = [pytest.mark.mount, pytest.mark.timeout(110)]


@pytest.mark.parametrize("seed", play.seeds(4))
def test_a_mount_does_as_the_model(seed: int) -> None:
    assert play.run("mount", seed, 500) == 500
