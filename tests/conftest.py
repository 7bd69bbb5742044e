"""One thread a process: the networks here are tiny, and two processes that spin for each other's cores take ten times as long."""
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the launchers' processes

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """tests.worlds.make_world in a folder that the tests of bad input share."""
    from tests.worlds import make_world
    return make_world(tmp_path_factory.mktemp("world"))
