"""The same bits twice: four stages, two threads, with and without --deterministic; seeds in results."""
import json
import os

import pytest
import torch

from recover import recover
from relabel import relabel
from squeeze import squeeze
from sre2l.data.datasets import DATASETS
from sre2l.nets.precision import set_deterministic
from sre2l.nets.teacher import load_teacher
from sre2l.run.device import versions
from sre2l.run.start import run_script
from tests.helpers import SMALL, run_main
from tests.worlds import train_flags
from validate import train

SEEDS = {"squeeze": 3, "recover": 4, "relabel": 5, "order": 6, "students": [7, 8]}


@pytest.fixture(autouse=True)
def restore_torch():
    """Two threads, and afterwards what was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    set_deterministic(False)


def run_stages(root, real, *flags):
    """squeeze, recover, relabel, validate in a tiny world -> root."""
    common = ("--dataset", "cifar10", "--name", root, "--device", "cpu", *flags)
    run_main(squeeze, *common, "--real-data", real, "--arch", SMALL, "--epochs", 2, "-b", 16, "-j", 2,
             "--seed", SEEDS["squeeze"])
    run_main(recover, *common, "--iteration", 2, "--ipc-end", 2, "--batch-size", 10, "--seed",
             SEEDS["recover"])
    run_main(relabel, *common, "--epochs", 2, "-b", 8, "-j", 2, "--seed", SEEDS["relabel"], "--fkd-seed",
             SEEDS["order"])
    run_main(train, *common, "--val-dir", real, "--model", SMALL, "--epochs", 2, "-j", 2, "--seeds", "7,8",
             "--fkd-seed", SEEDS["order"])
    return root


def results_of(root):
    """What the four stages have made: bytes of images and labels, tensors and numbers of the networks."""
    paths = [path for folder in ("images", "labels") for path in (root / folder).rglob("*.*")]
    files = {str(path.relative_to(root)): path.read_bytes() for path in paths}
    for path in sorted(root.rglob("*.pth")):
        for key, value in torch.load(path, map_location="cpu")["model"].items():
            files[f"{path.relative_to(root)} {key}"] = value.numpy().tobytes()
    for path in root.rglob("checkpoint.pth"):
        checkpoint = torch.load(path, map_location="cpu")
        numbers = {key: value for key, value in checkpoint.items() if key in ("history", "values")}
        files[f"{path.relative_to(root)} values"] = numbers
    return files


@pytest.mark.parametrize("flags", [(), ("--deterministic",)])
def test_every_stage_gives_the_same_bits_twice_on_a_cpu(flags, world, tmp_path):
    first, second = (results_of(run_stages(tmp_path / name, world / "real", *flags)) for name in "ab")
    assert first.keys() == second.keys() and len(first) > 100
    assert [key for key in first if first[key] != second[key]] == []
    check_records(tmp_path / "a", bool(flags))
    if not flags:
        check_seeds(tmp_path / "a")


def check_records(root, deterministic):
    """Logs, the labels' manifest and the results say whether the flag was on, and how many threads."""
    student = root / f"student_{SMALL}"
    names = ("teacher/log.txt", "images.log.txt", "labels.log.txt", f"{student.name}/log.txt")
    found = [json.loads((root / name).read_text().splitlines()[2]) for name in names]
    found += [json.loads((root / "labels.manifest.json").read_text())["settings"]["versions"],
              json.loads((student / "results.json").read_text())["versions"]]
    assert [(row["deterministic"], row["threads"]) for row in found] == [(deterministic, 2)] * 6


def check_seeds(root):
    """Each result file has the seeds of its stage and of those before, as far as they matter to it."""
    student = root / f"student_{SMALL}"
    assert json.loads((student / "results.json").read_text())["seeds_used"] == SEEDS
    for name in ("teacher.pth", "checkpoint.pth"):
        assert torch.load(root / "teacher" / name)["seed"] == 3
    assert [torch.load(student / f"seed{seed}" / "checkpoint.pth")["seed"] for seed in (7, 8)] == [7, 8]
    manifests = [json.loads((root / f"{name}.manifest.json").read_text()) for name in ("images", "labels")]
    images, labels = (manifest["settings"] for manifest in manifests)
    assert (images["seed"], images["teacher"]["seed"]) == (4, 3)
    seeds = [labels[key] for key in ("seed", "order_seed", "images_seed")]
    assert seeds == [5, 6, 4] and labels["teacher"]["seed"] == 3
    assert load_teacher(DATASETS["cifar10"], root / "teacher" / "teacher.pth").seed == 3


def test_seeds_that_nothing_tells_are_none(world, tmp_path):
    """Images and a teacher of other origin."""
    run_main(*train_flags(world, "--output-dir", tmp_path / "s"))
    found = json.loads((tmp_path / "s" / "results.json").read_text())["seeds_used"]
    assert found == {"squeeze": None, "recover": None, "relabel": 0, "order": 42, "students": [0]}


def test_the_flag_is_set_before_cuda_starts_and_is_off_again_in_the_next_run(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert versions(torch.device("cpu"))["deterministic"]
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    set_deterministic(False)
    assert not versions(torch.device("cpu"))["deterministic"]


def test_an_operation_without_a_deterministic_version_is_named_in_a_sentence_and_no_other(capsys):
    def main(_):
        set_deterministic(True)
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))

    def fails_otherwise(_):
        raise RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        run_script(fails_otherwise, lambda: None)
    with pytest.raises(SystemExit) as caught:
        run_script(main, lambda: None)
    message = capsys.readouterr().err
    assert caught.value.code == 2 and message.count("\n") == 1
    assert message.startswith("error: --deterministic: put_ does not have a deterministic implementation; "
                              "run without the flag")


@pytest.mark.gpu
def test_every_stage_gives_the_same_bits_twice_on_a_gpu(world, tmp_path):
    flags = ("--device", "cuda", "--deterministic")
    found = [results_of(run_stages(tmp_path / name, world / "real", *flags)) for name in "ab"]
    assert [key for key in found[0] if found[0][key] != found[1][key]] == []
