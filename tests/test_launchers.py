"""The launchers: every data set under --dry-run, from anywhere, under dash and bash; exit codes; the four stages on noise."""
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sre2l.data.datasets import DATASETS
from sre2l.run.paths import ROOT
from tests.helpers import SMALL, launch, noise_folder, run_main

LAUNCHERS = ("squeeze/squeeze.sh", "recover/recover.sh", "relabel/relabel.sh", "validate/train.sh")
PUBLISHED = {  # spec section 2: iterations, learning rate, r_bn, jitter
    "imagenet1k": (4000, 0.25, 0.01, 32), "tiny-imagenet": (4000, 0.1, 1.0, 4), "cifar100": (1000, 0.25, 0.01, 4), "cifar10": (1000, 0.25, 0.01, 4)}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number, dataset", list(enumerate(DATASETS)))
def test_every_data_set_has_a_plan(number, dataset, launcher, tmp_path, capsys):
    """--dry-run prints JSON, writes nothing, and works from the root, the stage's folder and elsewhere, under sh and bash. The python3
    that a launcher starts here prints its arguments, and this process runs the stage with them: to import torch takes 4 s."""
    stage, script = launcher.split("/")
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\ncase $1 in */preflight.py) exit 0 ;; esac\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    cwd, path = ((ROOT, launcher), (ROOT / stage, script), (tmp_path, ROOT / launcher))[number % 3]
    result = launch(path, dataset, "--dry-run", "--name", tmp_path / "run", cwd=cwd, shell=("sh", "bash")[number % 2],
                    PATH=f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    flag, module, *flags = result.stdout.splitlines()
    assert flag == "-m"
    run_main(importlib.import_module(module), *flags)
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["dataset"] == dataset
    assert not (tmp_path / "run").exists()
    if stage == "recover" and dataset in PUBLISHED:
        assert tuple(settings[key] for key in ("iteration", "lr", "r_bn", "jitter")) == PUBLISHED[dataset]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_data_set_without_a_block_is_refused(launcher, tmp_path):
    """Not run with ImageNet's defaults: a block that was forgotten, or its name mistyped."""
    text = (ROOT / launcher).read_text()
    script = tmp_path / launcher
    script.parent.mkdir()
    script.write_text(text.replace("    digits)", "    digit)"))
    (tmp_path / "sre2l").symlink_to(ROOT / "sre2l")
    result = launch(script, "digits", "--dry-run")
    assert (result.returncode, result.stdout) == (2, "") and f"{script.name} has no settings for 'digits'" in result.stderr


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


FAKE_PYTHONS = {  # what a fake python3 does, and the sentence that the user gets
    "exit 1": "error: Python 3.11 or newer is needed (torch 2.15 needs it), and none is on the PATH\n",
    '[ "$1" = -c ]': "error: python3 has no working venv module; on Debian or Ubuntu install the package python3-venv\n"}


@pytest.mark.parametrize("behaviour", FAKE_PYTHONS)
def test_a_python_that_cannot_do_it_is_told_so(behaviour, tmp_path):
    """demo.sh in a copy without .venv, where python3 is too old, or has no venv module: one sentence, exit code 2."""
    (tmp_path / "bin").mkdir()
    for name in ("python3", *(f"python3.{minor}" for minor in range(11, 15))):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{behaviour}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "sre2l").mkdir()
    for name in ("demo.sh", "requirements.txt", "sre2l/run/setup.sh", "sre2l/run/env.sh", "sre2l/run/preflight.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    result = subprocess.run(["sh", str(tmp_path / "demo.sh")], capture_output=True, text=True, check=False,
                            env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
    assert (result.returncode, result.stderr) == (2, FAKE_PYTHONS[behaviour])


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_the_user_as_exit_codes(sent, code, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(["sh", str(ROOT / "squeeze" / "squeeze.sh"), "digits", "--name", str(tmp_path / "run"), "--epochs", "999"],
                               env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a background shell ignores it, and we inherit
    log = tmp_path / "run" / "teacher" / "log.txt"
    deadline = time.monotonic() + 60
    while not (log.exists() and "999 of 999 epochs left" in log.read_text()) and time.monotonic() < deadline:
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
             ("recover/recover.sh", "--iteration", 2, "--ipc-end", 2, "--batch-size", 10, "--snapshot-every", 1, "--lossless"),
             ("relabel/relabel.sh", "--epochs", 2, "--batch-size", 8, "--workers", 1),
             ("validate/train.sh", *real, "--model", SMALL, "--epochs", 2, "--workers", 1, "--seeds", "0-1"),
             ("validate/train.sh", *real, "--model", SMALL, "--epochs", 2, "--workers", 0, "--hard-labels"),
             ("validate/random_real.sh", *real, "--model", SMALL)]
    for launcher, *flags in steps:
        result = launch(ROOT / launcher, common[0], *flags, *common[1:], cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    assert all(len(list(run.glob(f"{folder}/new*/class*_id*.png"))) == 20 for folder in ("images", "random_real/images"))
    assert len(list(run.glob("labels/epoch_*/batch_*.tar"))) == 2 * 3
    assert all((run / name).stat().st_size > 0 for name in ("images.png", "images.gif", "labels.manifest.json", "labels.sha256"))
    results = json.loads((run / f"student_{SMALL}" / "results.json").read_text())
    assert set(results["seeds"]) == {"0", "1"} and results["top1"]["std"] is not None
    assert all(seconds > 0 for seconds in results["seconds"].values())
    control = json.loads((run / "random_real" / f"student_{SMALL}" / "results.json").read_text())
    assert control["protocol"]["labels"]["num_images"] == 20
    plan = json.loads(launch("validate/random_real.sh", "cifar10", "--name", run, "--model", SMALL, "--overwrite", "--dry-run").stdout)
    assert [(Path(part["folder"]).name, part["files"]) for part in plan["deletes"]] == [("images", 20), ("labels", 2 * 3), (f"student_{SMALL}", 7)]
    repeated = plan["repeated"]
    assert (repeated["relabel"]["batch_size"], repeated["relabel"]["epochs"], repeated["relabel"]["mix"]) == (8, 2, "mixup")
    assert (repeated["validate"]["model"], repeated["validate"]["epochs"]) == (SMALL, 2)
    differing = {key for key in results["protocol"] if key != "labels" and results["protocol"][key] != control["protocol"][key]}
    assert not differing
