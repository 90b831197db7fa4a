"""The writable file system in this process against the model: 2,000 operations, other ones each time."""

from __future__ import annotations

import pytest

from tests.model import play

pytestmark = pytest.mark.timeout(110)


# the seeds are told by what fails: as names they would be other ones in each process of a run
@pytest.mark.parametrize("seed", play.seeds(8), ids=map(str, range(8)))
def test_a_file_system_in_this_process_does_as_the_model(seed: int) -> None:
    assert play.run("process", seed, 250) == 250
