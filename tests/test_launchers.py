"""The launchers: every data set under --dry-run, from anywhere, in dash and bash; exit codes; all stages."""
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from recover.batches import plan_batches
from relabel import plan as relabel_plan
from sre2l.data.datasets import DATASETS
from sre2l.run import preflight
from sre2l.run.paths import ROOT, launcher_command
from sre2l.run.start import run_script
from tests.helpers import SMALL, bare_checkpoint, launch, noise_folder, refused, run_main
from validate.deviations import choices, describe_labels
from validate.published import find_row

LAUNCHERS = ("squeeze/squeeze.sh", "recover/pick.sh", "recover/recover.sh", "relabel/relabel.sh",
             "validate/train.sh")
PUBLISHED = {  # spec section 2: iterations, learning rate, r_bn, jitter
    "imagenet1k": (4000, 0.25, 0.01, 32),
    "tiny-imagenet": (4000, 0.1, 1.0, 4),
    "cifar100": (1000, 0.25, 0.01, 4),
    "cifar10": (1000, 0.25, 0.01, 4),
    "imagenette": (4000, 0.25, 0.01, 32),  # of SRe2L++
    "imagenet21k-p": (2000, 0.05, 0.25, 32)}  # of CDA


def with_python(folder, behaviour):
    """A python3 that does what a line of sh says and finds every package -> the PATH on which it is first."""
    folder.mkdir(exist_ok=True)
    (folder / "python3").write_text(f"#!/bin/sh\ncase $1 in */preflight.py) exit 0 ;; esac\n{behaviour}\n")
    (folder / "python3").chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def planned(folder, launcher, *flags, **options):
    """What a launcher would start -> (module, *flags), to run in this process: to import torch takes 4 s."""
    find_scale = f'case $2 in sre2l.data.scale) exec {sys.executable} "$@" ;; esac'
    path = with_python(folder / "bin", f'{find_scale}\nprintf "%s\\n" "$@"')
    result = launch(launcher, *flags, PATH=path, **options)
    assert result.returncode == 0, result.stderr
    flag, module, *flags = result.stdout.splitlines()
    assert flag == "-m"
    return importlib.import_module(module), *flags


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number, dataset", list(enumerate(DATASETS)))
def test_every_data_set_has_a_plan(number, dataset, launcher, tmp_path, capsys):
    """--dry-run prints JSON and writes nothing: from the root, the stage's folder, elsewhere; sh and bash."""
    stage, script = launcher.split("/")
    places = ((ROOT, launcher), (ROOT / stage, script), (tmp_path, ROOT / launcher))
    cwd, file = places[number % 3]
    shell = ("sh", "bash")[number % 2]
    run_main(*planned(tmp_path, file, dataset, "--dry-run", "--name", tmp_path / "run", cwd=cwd, shell=shell))
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["dataset"] == dataset
    assert not (tmp_path / "run").exists()
    if script == "recover.sh" and dataset in PUBLISHED:
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
    assert (result.returncode, result.stdout) == (2, "")
    assert f"{script.name} has no settings for 'digits'" in result.stderr


CHAIN = ("squeeze/squeeze.sh", "recover/pick.sh", "recover/recover.sh", "relabel/relabel.sh",
         "validate/train.sh")
# What run.sh leaves out.
ABSENT = {"cda": "recover/pick.sh", "rded": "recover/recover.sh", "digits+best": "recover/recover.sh"}


def recipes_of(launcher):
    """The words NAME+RECIPE that a launcher has a block for; of '*+RECIPE' RECIPE stands for every NAME."""
    text = (ROOT / launcher).read_text()
    assert text.count("no_recipe") == 1
    return set(re.findall(r"[a-z0-9*-]+\+[a-z]+\+?(?= *[|)])", text.partition("no_recipe")[0]))


def test_every_recipe_has_settings_in_all_launchers_of_its_chain(tmp_path):
    words = {word for launcher in CHAIN for word in recipes_of(launcher) if word[0] != "*"}
    assert {word.partition("+")[2] for word in words} == {"cda", "rded", "fadrm", "fadrm+", "edc", "young",
                                                           "best"}
    for word in sorted(words):
        dataset, _, recipe = word.partition("+")
        for launcher in CHAIN:
            blocks = recipes_of(launcher)
            has_block = word in blocks or f"*+{recipe}" in blocks
            assert has_block == (launcher != ABSENT.get(word, ABSENT.get(recipe))), (word, launcher)


@pytest.mark.parametrize("word", ["tiny-imagenet+cda", "imagenette+rded", "cifar10+fadrm", "digits+young"])
@pytest.mark.parametrize("launcher", CHAIN)
def test_a_recipe_is_planned_in_a_run_of_its_own(word, launcher, tmp_path, capsys):
    dataset, _, recipe = word.partition("+")
    if launcher == ABSENT.get(recipe):
        result = launch(launcher, word)
        assert (result.returncode, result.stdout) == (2, "")
        assert f"{launcher.split('/')[1]} has no settings for '{word}'; of this data set it has: " \
            in result.stderr
        return
    run_main(*planned(tmp_path, launcher, word, "--dry-run"))
    plan = json.loads(capsys.readouterr().out)
    assert plan["settings"]["dataset"] == dataset
    assert plan["output"].startswith(str(ROOT / "runs" / word))


def test_a_hint_at_an_earlier_stage_keeps_the_recipe(tmp_path):
    """squeeze.sh digits would train another network than squeeze.sh digits+young."""
    (tmp_path / "run").mkdir()
    of_recover = planned(tmp_path, "recover/recover.sh", "digits+young", "--name", tmp_path / "run")
    message = refused(*of_recover)
    assert f"(sh squeeze/squeeze.sh digits+young --name {tmp_path / 'run'})" in message
    file = bare_checkpoint(tmp_path / "convnet3.pth", "convnet3")
    message = refused(*of_recover, "--teacher", file, "--arch", "convnet3", "--allow-chance")
    assert f"'sh recover/pick.sh digits+young --name {tmp_path / 'run'}' makes" in message
    args = of_recover[0].get_args(["--dataset", "digits+young"])
    assert launcher_command(args, "recover/pick.sh") == "sh recover/pick.sh digits+young"  # its own run
    args = of_recover[0].get_args(["--dataset", "digits", "--name", "q 3"])
    assert launcher_command(args, "x.sh", "--overwrite") == "sh x.sh digits --name 'q 3' --overwrite"


@pytest.mark.parametrize("word", ["photos+young", "mnist+young"])
def test_a_data_set_without_recipes_is_told_where_their_flags_are(word):
    result = launch("squeeze/squeeze.sh", word)
    assert result.returncode == 2
    assert "of this data set it has: none (docs/methods.md has the flags, for a data set of your own" \
        in result.stderr
    assert "docs/methods.md" not in launch("squeeze/squeeze.sh", "digits+edc").stderr  # it has others


def flags_planned(tmp_path, launcher, word):
    """What a launcher's stage is given for NAME+RECIPE -> (module, its arguments)."""
    module, *flags = planned(tmp_path, launcher, word)
    return module, module.get_args(flags)


def words_of(recipe):
    return sorted(word for word in recipes_of("relabel/relabel.sh") if word.endswith(f"+{recipe}"))


@pytest.mark.parametrize("word", [word for recipe in ("cda", "rded", "fadrm", "fadrm+", "edc")
                                  for word in words_of(recipe) if not word.startswith("imagenet21k")])
def test_a_recipe_labels_as_the_published_protocol_of_its_student_wants_it(word, tmp_path):
    """Batch, mix, crops, the teacher's mode, augmentation and number of teachers: those of the row."""
    dataset, _, recipe = word.partition("+")
    _, args = flags_planned(tmp_path, "relabel/relabel.sh", word)
    spec = DATASETS[dataset]
    facts = {**relabel_plan.make_settings(args, spec), "teacher": None, "num_images": 10 * spec.num_classes}
    facts["teachers"] = (args.arch or "").split(",")
    row = find_row(recipe.rstrip("+"), spec, 10, "resnet18")
    found = describe_labels(facts)
    for key, wanted in row.labels.items():
        assert found[key] in choices(wanted), (key, found[key], wanted)
    assert args.epochs == row.flags["epochs"]


@pytest.mark.parametrize("word", sorted(word for word in recipes_of("recover/recover.sh")
                                        if word.partition("+")[2] != "cda"))
def test_a_recipe_recovers_as_many_images_as_it_picks_and_each_block_has_them(word, tmp_path):
    """Batches that take more images of a class than are picked would be refused after hours of squeeze."""
    _, pick_args = flags_planned(tmp_path, "recover/pick.sh", word)
    module, args = flags_planned(tmp_path, "recover/recover.sh", word)
    assert args.ipc_end == pick_args.ipc_end and args.init == "picked"
    classes = list(range(DATASETS[word.partition("+")[0]].num_classes))
    for ipc in (1, 7, args.ipc_end):
        batches = plan_batches(classes, args.batch_size, 0, ipc, args.batch_order)
        assert max(pair[0] for batch in batches for pair in batch.pairs) == ipc - 1


def test_no_name_means_imagenet_and_hand_given_flags_win(tmp_path, capsys):
    run_main(*planned(tmp_path, "recover/recover.sh", "--iteration", 7, "--dry-run"))
    plan = json.loads(capsys.readouterr().out)
    assert (plan["settings"]["dataset"], plan["settings"]["iteration"]) == ("imagenet1k", 7)
    assert (plan["images"], plan["units"]) == (50_000, 500)


def test_a_data_set_given_as_a_flag_would_bring_the_wrong_table_and_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recover/recover.py"])
    refused(*planned(tmp_path, "recover/recover.sh", "--dataset", "digits", "--dry-run"))
    assert "sh recover.sh digits" in capsys.readouterr().err


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT / "relabel")
    stage, *flags = planned(tmp_path, "relabel.sh", "cifar10", "--data", "nowhere/images", cwd=Path.cwd())
    with pytest.raises(SystemExit) as caught:
        run_script(stage.main, partial(stage.get_args, flags))
    said = capfd.readouterr()
    assert caught.value.code == 2 and said.out == ""
    assert said.err == f"error: {ROOT / 'relabel' / 'nowhere' / 'images'}: there is no such folder\n"


VENV_IS_MISSING = ("error: python3 has no working venv module; "
                   "on Debian or Ubuntu install the package python3-venv\n")
FAKE_PYTHONS = {  # what a fake python3 does, and the sentence that the user gets
    "exit 1": "error: Python 3.11 or newer is needed, and none is on the PATH\n",
    '[ "$1" = -c ]': VENV_IS_MISSING}


@pytest.mark.parametrize("behaviour", FAKE_PYTHONS)
def test_a_python_that_cannot_do_it_is_told_so(behaviour, tmp_path):
    """demo.sh in a copy without .venv, where python3 is too old or has no venv module: a sentence, code 2."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "python3", *(f"python3.{minor}" for minor in range(11, 15))):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{behaviour}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "sre2l" / "run").mkdir(parents=True)
    setup = ("setup.sh", "env.sh", "preflight.py")
    for name in ("demo.sh", "run.sh", "requirements.txt", *(f"sre2l/run/{name}" for name in setup)):
        shutil.copy(ROOT / name, tmp_path / name)
    result = subprocess.run(["sh", str(tmp_path / "demo.sh")], capture_output=True, text=True, check=False,
                            env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"})
    assert (result.returncode, result.stderr) == (2, FAKE_PYTHONS[behaviour])


def test_a_torchvision_of_another_torch_is_one_sentence(monkeypatch):
    """As the packages' own records tell it: importing the two would end in a traceback."""
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["numpy", "torch (==2.12.1)"])
    found = {"torch": "2.14.1+cu130", "torchvision": "0.27.1"}
    monkeypatch.setattr("importlib.metadata.version", lambda name: found.get(name, "99.0"))
    sentence = "torchvision 0.27.1 was built for torch 2.12.1, and torch is 2.14.1"
    assert preflight.first_problem() == sentence
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["torch==2.14.1"])
    assert preflight.first_problem() is None


def test_python_may_have_no_other_name_and_a_path_of_the_users_own(tmp_path):
    """Nothing called python3 is on the path; our modules come first, those of PYTHONPATH behind them."""
    path = with_python(tmp_path / "bin", 'printf "%s\\n" "$PYTHONPATH" "$@"')
    (tmp_path / "bin" / "python3").rename(tmp_path / "bin" / "python")
    for tool in ("sh", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    result = launch("recover/recover.sh", "digits", PATH=path.partition(os.pathsep)[0], PYTHONPATH="/mine")
    assert result.stdout.splitlines()[:3] == [f"{ROOT}:/mine", "-m", "recover.recover"], result.stderr


def hear_ctrl_c():
    """For a child: a background shell ignores SIGINT, and so would the children of a test in such a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_signal_reaches_the_user_as_an_exit_code(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", ROOT / "squeeze" / "squeeze.sh", "digits", "--name", tmp_path / "run", "--epochs", "999"]
    process = subprocess.Popen([str(word) for word in command], env={**os.environ, "PATH": path}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hear_ctrl_c)
    log = tmp_path / "run" / "teacher" / "log.txt"
    deadline = time.monotonic() + 60
    while not (log.exists() and "999 of 999 epochs left" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_demo_ends_its_stage(sent, code, tmp_path):
    """To its process alone, as a process manager sends it. The stage here is a python3 that sleeps."""
    chain = f'case "$2 $*" in report.chain* | *--dry-run*) exec {sys.executable} "$@" ;; esac'
    path = with_python(tmp_path / "bin", f'{chain}; echo $$ > "{tmp_path}/pid"; exec sleep 60')
    command = ["sh", str(ROOT / "demo.sh")]
    demo = subprocess.Popen(command, env={**os.environ, "PATH": path}, preexec_fn=hear_ctrl_c)
    until = time.monotonic() + 180
    while not (tmp_path / "pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    stage = int((tmp_path / "pid").read_text())
    demo.send_signal(sent)
    assert demo.wait(timeout=30) == code
    with pytest.raises(ProcessLookupError):
        os.kill(stage, 0)


@pytest.mark.parametrize("gpus, torchrun, wanted", [
    ("4", "", "--nproc_per_node=4 --standalone"),
    ("1", "--nnodes 2 --rdzv-id 7", "--nproc_per_node=1 --nnodes 2 --rdzv-id 7")])
def test_several_processes_are_started_by_torchrun(gpus, torchrun, wanted, tmp_path):
    """GPUS on this machine, TORCHRUN for several; each process gets its part of the cores."""
    fake = 'case $1 in -c) echo 8 ;; *) echo "$@"; echo $OMP_NUM_THREADS ;; esac'
    environment = {"PATH": with_python(tmp_path / "bin", fake), "GPUS": gpus, "TORCHRUN": torchrun}
    done = launch("recover/recover.sh", "digits", **environment, OMP_NUM_THREADS="")
    words, threads = done.stdout.splitlines()
    assert words.startswith(f"-m torch.distributed.run {wanted} -m recover.recover --dataset digits")
    assert int(threads) == 8 // int(gpus)
    done = launch("recover/recover.sh", "digits", **environment, OMP_NUM_THREADS="3")
    assert done.stdout.splitlines()[1] == "3"


def test_four_stages_and_both_controls_on_noise(tmp_path, monkeypatch, capsys):
    """All stages and both controls as the launchers start them; they find each other under one --name."""
    monkeypatch.chdir(tmp_path)
    names = [f"c{i}" for i in range(10)]
    noise_folder(tmp_path / "real" / "train", names, 4)
    noise_folder(tmp_path / "real" / "val", names, 2, seed=1)
    common = ("cifar10", "--name", tmp_path / "run")
    real = ("--real-data", "real")  # relative to where the user stands
    steps = [("squeeze/squeeze.sh", *real, "--arch", SMALL, "--epochs", 1, "-b", 20, "-j", 0),
             ("recover/recover.sh", "--iteration", 2, "--ipc-end", 2, "--batch-size", 10,
              "--snapshot-every", 1, "--lossless"),
             ("relabel/relabel.sh", "--epochs", 2, "--batch-size", 8, "--workers", 1),
             ("validate/train.sh", *real, "--model", SMALL, "--epochs", 2, "--workers", 1, "--seeds", "0-1"),
             ("validate/train.sh", *real, "--model", SMALL, "--epochs", 2, "--workers", 0, "--hard-labels"),
             ("validate/random_real.sh", *real, "--model", SMALL)]
    for launcher, *flags in steps:
        run_main(*planned(tmp_path, ROOT / launcher, common[0], *flags, *common[1:], cwd=tmp_path))
    run = tmp_path / "run"
    for folder in ("images", "random_real/images"):
        assert len(list(run.glob(f"{folder}/new*/class*_id*.png"))) == 20
    assert len(list(run.glob("labels/epoch_*/batch_*.tar"))) == 2 * 3
    for name in ("images.png", "images.gif", "labels.manifest.json", "labels.sha256"):
        assert (run / name).stat().st_size > 0
    results = json.loads((run / f"student_{SMALL}" / "results.json").read_text())
    assert set(results["seeds"]) == {"0", "1"} and results["top1"]["std"] is not None
    assert all(seconds > 0 for seconds in results["seconds"].values())
    control = json.loads((run / "random_real" / f"student_{SMALL}" / "results.json").read_text())
    assert control["protocol"]["labels"]["num_images"] == 20
    capsys.readouterr()
    again = ("cifar10", "--name", run, "--model", SMALL, "--overwrite", "--dry-run")
    run_main(*planned(tmp_path, "validate/random_real.sh", *again))
    plans = json.loads("[" + capsys.readouterr().out.replace("\n}\n{", "\n},\n{") + "]")
    deletes = [(Path(plan["deletes"]["folder"]).name, plan["deletes"]["files"]) for plan in plans]
    assert deletes == [("images", 20), ("labels", 2 * 3), (f"student_{SMALL}", 7)]
    _, relabelled, trained = (plan["settings"] for plan in plans)
    assert (relabelled["batch_size"], relabelled["epochs"], relabelled["mix"]) == (8, 2, "mixup")
    assert (trained["model"], trained["epochs"]) == (SMALL, 2)
    differing = {key for key in results["protocol"] if results["protocol"][key] != control["protocol"][key]}
    assert differing <= {"labels"}
