"""One thread a process: the networks here are tiny, and two processes that spin for each other's cores take ten times as long."""
import os
import subprocess
import sys
from collections import Counter

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the launchers' processes

import pytest  # noqa: E402

LONGEST = ("test_soak", "test_processes", "test_kernels", "test_launchers", "test_launch", "test_fast_engine", "test_disk", "test_torture",
           "test_recover_precision", "test_relabel_precision", "test_interrupts", "test_bench", "test_damage", "test_deterministic")


def pytest_collection_modifyitems(items):
    """The files that take longest come first: a file goes to one process, and none shall be left alone with a long one at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_terminal_summary(terminalreporter):
    """The slowest files, seconds over all their tests."""
    seconds = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports if hasattr(report, "duration")):
        seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("slowest files")
    for name, value in seconds.most_common(8):
        terminalreporter.write_line(f"{value:6.1f} s  {name}")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """tests.worlds.make_world in a folder that the tests of bad input share."""
    from tests.worlds import make_world
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def other():
    """Another process of this machine that lives for a while."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()
