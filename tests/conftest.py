"""One thread a process: networks are tiny here, and processes that share cores take ten times as long."""
import itertools
import os
from collections import Counter

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the launchers' processes
os.environ["OMP_WAIT_POLICY"] = "passive"  # two threads of a test do not spin for a core

import pytest  # noqa: E402
import torch  # noqa: E402

from sre2l.run.start import prepare_process  # noqa: E402
from validate.results import write_page  # noqa: E402

prepare_process()

LONGEST = (
    "test_processes", "test_kernels", "test_torture", "test_fast_engine", "test_disk", "test_interrupts",
    "test_report", "test_precision_training", "test_bench", "test_stop_training", "test_damage",
    "test_launchers", "test_recover_precision", "test_relabel_precision", "test_deterministic")


def pytest_collection_modifyitems(items):
    """Skip what is marked `gpu` where there is no GPU, and start with the files that take longest.

    A file goes to one process, and no process shall be left alone with a long file at the end."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_terminal_summary(terminalreporter):
    """The slowest files, seconds over all their tests."""
    seconds = Counter()
    for report in itertools.chain(*terminalreporter.stats.values()):
        if hasattr(report, "duration"):
            seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("slowest files")
    for name, value in seconds.most_common(8):
        terminalreporter.write_line(f"{value:6.1f} s  {name}")


@pytest.fixture(scope="session", autouse=True)
def no_page():
    """Training ends without its page, which takes three seconds, but where a test has the fixture `page`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("validate.results.write_page", lambda run, student: "no report: a test")
        yield


@pytest.fixture
def page(monkeypatch):
    """Students get their page (no_page)."""
    monkeypatch.setattr("validate.results.write_page", write_page)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """tests.worlds.make_world in a folder that the tests of bad input share."""
    from tests.worlds import make_world
    return make_world(tmp_path_factory.mktemp("world"))
