"""The launchers: every data set under --dry-run, from anywhere, under dash and bash; exit codes; the four stages on noise."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sre2l.datasets import DATASETS
from sre2l.runtime import ROOT
from tests.helpers import SMALL, launch, noise_folder

LAUNCHERS = ("squeeze/squeeze.sh", "recover/recover.sh", "relabel/relabel.sh", "validate/train.sh")
PUBLISHED = {  # spec section 2: iterations, learning rate, r_bn, jitter
    "imagenet1k": (4000, 0.25, 0.01, 32), "tiny-imagenet": (4000, 0.1, 1.0, 4), "cifar100": (1000, 0.25, 0.01, 4), "cifar10": (1000, 0.25, 0.01, 4)}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number, dataset", list(enumerate(DATASETS)))
def test_every_data_set_has_a_plan(number, dataset, launcher, tmp_path):
    """--dry-run prints JSON, writes nothing, and works from the root, the stage's folder and elsewhere, under sh and bash."""
    stage, script = launcher.split("/")
    cwd, path = ((ROOT, launcher), (ROOT / stage, script), (tmp_path, ROOT / launcher))[number % 3]
    result = launch(path, dataset, "--dry-run", "--name", tmp_path / "run", cwd=cwd, shell=("sh", "bash")[number % 2])
    assert result.returncode == 0, result.stderr
    settings = json.loads(result.stdout)["settings"]
    assert settings["dataset"] == dataset
    assert not (tmp_path / "run").exists()
    if stage == "recover" and dataset in PUBLISHED:
        assert tuple(settings[key] for key in ("iteration", "lr", "r_bn", "jitter")) == PUBLISHED[dataset]


def test_no_name_means_imagenet_and_hand_given_flags_win():
    result = launch("recover/recover.sh", "--iteration", 7, "--dry-run")
    plan = json.loads(result.stdout)
    assert (plan["settings"]["dataset"], plan["settings"]["iteration"]) == ("imagenet1k", 7)
    assert (plan["images"], plan["units"]) == (50_000, 500)


def test_a_data_set_given_as_a_flag_would_bring_the_wrong_table_and_is_refused():
    result = launch("recover/recover.sh", "--dataset", "digits", "--dry-run")
    assert result.returncode == 2 and "sh recover.sh digits" in result.stderr


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path):
    result = launch("relabel.sh", "cifar10", "--data", "nowhere/images", cwd=ROOT / "relabel")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == f"error: {ROOT / 'relabel' / 'nowhere' / 'images'}: there is no such folder\n"


def test_an_old_python_is_told_so(tmp_path):
    """demo.sh with only an old python3 on the path says which is needed, in one sentence, with exit code 2."""
    for name in ("python3", *(f"python3.{minor}" for minor in range(11, 15))):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    if (ROOT / ".venv").exists():
        pytest.skip("the .venv of this checkout is used instead")
    result = subprocess.run(["sh", str(ROOT / "demo.sh")], capture_output=True, text=True, check=False,
                            env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert result.returncode == 2
    assert result.stderr == "error: Python 3.11 or newer is needed (torch 2.15 needs it), and none is on the PATH\n"


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_the_user_as_exit_codes(sent, code, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(["sh", str(ROOT / "squeeze" / "squeeze.sh"), "digits", "--name", str(tmp_path / "run"), "--epochs", "999"],
                               env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "teacher" / "log.txt"
    deadline = time.monotonic() + 60
    while not (log.exists() and "epochs 0-998" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command continues" in stderr and "Traceback" not in stderr


def test_four_stages_and_both_controls_on_noise(tmp_path):
    """Squeeze, recover, relabel, validate and the controls through the launchers; stages find each other under one --name."""
    names = [f"c{i}" for i in range(10)]
    noise_folder(tmp_path / "real" / "train", names, 4)
    noise_folder(tmp_path / "real" / "val", names, 2, seed=1)
    common = ("cifar10", "--name", tmp_path / "run")
    real = ("--real-data", "real")  # relative to where the user stands
    steps = [("squeeze/squeeze.sh", *real, "--arch", SMALL, "--epochs", 1, "--batch-size", 20, "--workers", 0),
             ("recover/recover.sh", "--iteration", 2, "--ipc-end", 2, "--batch-size", 10, "--snapshot-every", 1),
             ("relabel/relabel.sh", "--epochs", 2, "--batch-size", 8, "--workers", 1),
             ("validate/train.sh", *real, "--model", SMALL, "--epochs", 2, "--workers", 1, "--seeds", "0-1"),
             ("validate/train.sh", *real, "--model", SMALL, "--epochs", 2, "--workers", 0, "--hard-labels"),
             ("validate/random_real.sh", *real, "--model", SMALL)]
    for launcher, *flags in steps:
        result = launch(ROOT / launcher, common[0], *flags, *common[1:], cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    assert len(list(run.glob("images/new*/class*_id*.jpg"))) == 20
    assert len(list(run.glob("labels/epoch_*/batch_*.tar"))) == 2 * 3
    assert all((run / name).stat().st_size > 0 for name in ("images.png", "images.gif", "labels.manifest.json", "labels.sha256"))
    results = json.loads((run / f"student_{SMALL}" / "results.json").read_text())
    assert set(results["seeds"]) == {"0", "1"} and results["top1"]["std"] is not None
    assert all(seconds > 0 for seconds in results["seconds"].values())
    control = json.loads((run / "random_real" / f"student_{SMALL}" / "results.json").read_text())
    assert control["protocol"]["labels"]["num_images"] == 20
    differing = {key for key in results["protocol"] if key != "labels" and results["protocol"][key] != control["protocol"][key]}
    assert not differing
