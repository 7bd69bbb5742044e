"""A run that an earlier version made (old_run.tar), and the teacher and real images it was made with.

The teacher's weights are a formula in whole numbers, so that every torch gives the same bytes."""
import tarfile
from pathlib import Path

import torch

from relabel import check
from report.rows import SAFELY
from sre2l.nets.models import build_network
from sre2l.run.files import read_json
from tests.helpers import SMALL, noise_folder, refused, run_main
from tests.test_continue import files_of
from tests.worlds import NAMES, recover_flags, relabel_flags, train_flags

ARCHIVE = Path(__file__).with_name("old_run.tar")


def formula_weights(network):
    """Give a network weights between -0.05 and 0.05 by a formula, and no biases."""
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            index = torch.arange(value.numel(), dtype=torch.int64)
            value.copy_((((index * 40503 + 12345) % 65536).float() / 655360 - 0.05).view_as(value))
        elif name.endswith("bias"):
            value.zero_()


def unpack(root):
    """Write the run, its teacher and real images under `root` -> the commands that made it: recover, relabel
    and validate."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, **SAFELY)
    network, _ = build_network(SMALL, 10, "torchvision")
    formula_weights(network)
    torch.save(network.state_dict(), root / "teacher.pth")
    for split in ("train", "val"):
        noise_folder(root / "real" / split, NAMES, 2)
    return (recover_flags(root, "--iteration", 2, "--jitter", 4, name="run"),
            relabel_flags(root, "--epochs", 2, "-b", 5),
            train_flags(root, "--epochs", 2, "--gradient-accumulation-steps", 1))


def test_a_run_that_an_earlier_version_made_is_checked_kept_and_continued(tmp_path, capsys):
    """Its images and labels have no fault, the same commands change nothing, longer ones add to them."""
    recover, relabel, validate = unpack(tmp_path)
    run = tmp_path / "run"
    before = files_of(run / "images") | files_of(run / "labels")
    run_main(check, "--dataset", "cifar10", "--name", run)
    assert "no fault found" in capsys.readouterr().out
    run_main(*recover)
    run_main(*relabel)
    assert files_of(run / "images") | files_of(run / "labels") == before

    run_main(*relabel, "--epochs", 3)
    results = run / f"student_{SMALL}" / "results.json"
    wanted = read_json(results)
    run_main(*validate)  # its settings are accepted; its checkpoint is not in the archive
    assert read_json(results)["image_bytes"] == wanted["image_bytes"]

    run_main(*recover, "--ipc-end", 2)
    after = files_of(run / "images") | files_of(run / "labels")
    assert before.items() <= after.items() and len(after) == len(before) + 10 + 2
    for other in (("--lr", 0.5), ("--lossless",)):
        assert "other settings" in refused(*recover, *other)
