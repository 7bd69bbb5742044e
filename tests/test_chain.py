"""run.sh: the whole method by one command. demo.sh, which .ci/run calls, runs it to its end."""
import json
import os
import subprocess
import threading
import time

import pytest
import torch

from recover import pick, recover
from recover.picks import check_enough
from relabel import relabel
from report import chain, estimate
from squeeze import squeeze
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import read_folder
from sre2l.run.errors import UserError
from tests.helpers import noise_folder, run_main
from validate import train

TYPED = "--device cpu --iteration=5 --recover.lr 0.1 --name x --overwrite --model vgg11_bn".split()


def test_a_flag_goes_to_every_stage_that_has_it():
    flags = chain.split_flags(TYPED)
    shared = ["--device", "cpu", "--name", "x", "--overwrite"]
    assert flags["squeeze"] == flags["relabel"] == shared
    assert flags["recover"] == ["--device", "cpu", "--iteration", "5", "--lr", "0.1", *shared[2:]]
    assert flags["validate"] == [*shared, "--model", "vgg11_bn"]
    assert flags["check"] == ["--name", "x"]
    assert flags["random_real"] == [*shared[2:], "--model", "vgg11_bn"]
    assert flags["summary"] == ["--name", "x", "--model", "vgg11_bn"]


def test_flags_are_spelled_as_argparse_knows_them():
    flags = chain.split_flags("-j4 --verifier --iteration 5 --mean=0.5,0.5,0.5 --relabel.mixup .5".split())
    assert flags["recover"] == ["--verifier", "--iteration", "5", "--mean", "0.5,0.5,0.5"]
    assert flags["relabel"] == ["-j", "4", "--mean", "0.5,0.5,0.5", "--mixup", ".5"]


@pytest.mark.parametrize("words, message", [
    ("--overwrite=no", "--overwrite takes no value"),
    ("-b 3", "say which: --squeeze.batch-size, --relabel.batch-size"),
    ("--hard-labels", "run.sh says this itself"),
    ("--epochs 3", "say which: --squeeze.epochs, --relabel.epochs, --validate.epochs"),
    ("--colour red", "--colour: no stage has the flag --colour; --help"),
    ("--iterations 9", "no stage has the flag --iterations; did you mean --iteration"),
    ("--recover.epochs 3", "--recover.epochs: recover does not have the flag --epochs"),
    ("--validate.seed 3", "validate does not have the flag --seed; did you mean --seeds"),
    ("--students.epochs 3", "there is no stage 'students'; there are squeeze, pick, recover"),
    ("--fkd-path labels", "run.sh says this itself"),
    ("--recover.name other", "--name is for all stages together"),
    ("--iteration", "--iteration: its value is missing")])
def test_a_flag_that_does_not_say_what_it_is_for_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        chain.split_flags(words.split())


def test_a_mistake_in_the_flags_of_a_late_stage_ends_the_chain_before_the_first(capsys):
    with pytest.raises(SystemExit, match="2"):
        chain.split_flags(["--validate.epochs", "many"])
    assert "error: validate: argument --epochs: 'many' is not a number" in capsys.readouterr().err


def test_a_step_that_fails_is_named_with_the_way_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "good.sh").write_text("exit 0")
    (tmp_path / "bad.sh").write_text("exit 3")
    programs = {"squeeze": "good.sh", "recover": "bad.sh", "relabel": "never.sh"}
    steps = [(stage, stage, str(tmp_path / program), ()) for stage, program in programs.items()]
    monkeypatch.setattr(chain, "STEPS", steps)
    monkeypatch.setattr(chain, "plan_stages", lambda *_: plan_with(steps=1))
    with pytest.raises(SystemExit, match="3"):
        run_main(chain, "--dataset", "digits", "--iteration", 9)
    err = capsys.readouterr().err
    assert err.endswith("recover ended with exit code 3, see above; go on from there with: "
                        "sh run.sh digits --iteration 9\n")


def plan_with(images=20, steps=2):
    return {"recover": {"images": images, "settings": {}}, "relabel": {"settings": {"batch_size": 10}},
            "validate": {"settings": {"gradient_accumulation_steps": steps}}}


def test_what_a_late_stage_refuses_ends_the_chain_before_the_first(tmp_path, monkeypatch):
    flags = ("--dataset", "digits", "--name", tmp_path / "run", "--device", "cpu")
    with pytest.raises(UserError, match="^recover: .*--ipc-start 9 is not below --ipc-end 9"):
        run_main(chain, *flags, "--ipc-start", 9, "--ipc-end", 9)
    monkeypatch.setenv("GPUS", "3")
    monkeypatch.setattr(chain, "plan_stages", lambda *_: plan_with(steps=2))
    with pytest.raises(UserError, match="not a multiple of the 3 processes.*--gradient-accumulation-steps 6"):
        run_main(chain, *flags)
    monkeypatch.setenv("GPUS", "1")
    monkeypatch.setattr(chain, "plan_stages", lambda *_: plan_with(images=21))
    with pytest.raises(UserError, match="of 10 over 21 images in 2 micro-batches leave a single image"):
        run_main(chain, *flags)
    plans = plan_with()
    plans["validate"]["settings"]["epochs"], plans["relabel"]["settings"]["epochs"] = 1000, 400
    monkeypatch.setattr(chain, "plan_stages", lambda *_: plans)
    with pytest.raises(UserError, match="1000 epochs, and relabel makes labels for 400; type --relabel.epo"):
        run_main(chain, *flags)
    assert not (tmp_path / "run").exists()


def test_a_control_that_lacks_real_images_ends_the_chain_before_the_first(tmp_path, monkeypatch):
    photos = noise_folder(tmp_path / "photos" / "train", ["ant", "bee"], 4)
    noise_folder(tmp_path / "photos" / "val", ["ant", "bee"], 1)
    (photos / "bee" / "bee_000.png").unlink()
    monkeypatch.setattr(chain, "plan_stages", lambda *_: plan_with(images=8))
    flags = ("--dataset", "photos", "--name", tmp_path / "run", "--real-data", tmp_path / "photos")
    wanted = "class 1 has 3 images, 4 are wanted.*--ipc-end 3, or add images to .*train/bee$"
    with pytest.raises(UserError, match=wanted):
        run_main(chain, *flags)
    check_enough(read_folder(photos), [0], 4)  # of one class four, and it has them


def test_the_way_on_overwrites_what_is_not_done_alone(monkeypatch):
    args = chain.get_args(["--dataset", "digits", "--overwrite", "--recover.lr", "1"])
    assert chain.way_on(args, ["squeeze"]) == \
        "sh run.sh digits --recover.lr 1 --relabel.overwrite --validate.overwrite --random_real.overwrite"
    args = chain.get_args(["--dataset", "digits", "--squeeze.overwrite", "--recover.overwrite"])
    assert chain.way_on(args, ["squeeze"]) == "sh run.sh digits --recover.overwrite"
    args = chain.get_args(["--dataset", "digits", "--overwrite", "--recover.lr", "1"])
    monkeypatch.setenv("GPUS", "2")
    done = [name for name, *_ in chain.steps_of("noise")[:5]]
    assert chain.way_on(args, done) == "GPUS=2 sh run.sh digits --recover.lr 1 --random_real.overwrite"


def test_a_signal_that_comes_too_late_for_a_stage_ends_the_chain(tmp_path):
    """The stage is done and says so by its exit code; nothing after it is started."""
    (tmp_path / "stage.sh").write_text(f"trap '' TERM; touch {tmp_path}/ready; sleep 1")
    thread = threading.Thread(target=lambda: (wait_for(tmp_path / "ready"), os.kill(os.getpid(), 15)))
    thread.start()
    assert chain.run_step(["sh", str(tmp_path / "stage.sh")]) == 143
    thread.join()


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def test_a_set_without_real_images_is_refused_before_its_first_stage(tmp_path):
    with pytest.raises(UserError, match="say where they are with --real-data DIR"):
        run_main(chain, "--dataset", "imagenet1k", "--name", tmp_path)


def plan_of(capsys, script, *flags):
    run_main(script, "--dataset", "digits", "--dry-run", *flags)
    return json.loads(capsys.readouterr().out)


def test_a_dry_run_adds_up_what_the_stages_plan(tmp_path, monkeypatch, capsys):
    """The sums of a table are those of the formulas: images x passes x seconds, bytes of every step."""
    name = ("--name", tmp_path / "run")
    plans = {"squeeze": plan_of(capsys, squeeze, *name, "--epochs", 3),
             "recover": plan_of(capsys, recover, *name, "--iteration", 7, "--ipc-end", 2),
             "relabel": plan_of(capsys, relabel, *name, "--epochs", 4),
             "validate": plan_of(capsys, train, *name, "--epochs", 4, "--seeds", "0,1")}
    rates = estimate.Rates(train=3.0, forward=1.0, recover=2.0)
    monkeypatch.setattr(estimate, "measure_rates", lambda *_: rates)
    found = estimate.estimate(plans, DATASETS["digits"], None, torch.device("cpu"))
    seconds = {name: values[0] for name, values in found.items()}
    sizes = {name: values[1] for name, values in found.items()}
    computed = plans["recover"]["images_computed"]
    validate = 2 * (4 * 20 * 3 + 797)
    assert seconds == {"squeeze": 3 * 1000 * 3 + 797, "recover": 7 * computed * 2, "relabel": 4 * 20,
                       "validate": validate, "hard labels": validate, "random real images": 80 + validate}
    assert sizes["random real images"] == sum(sizes[name] for name in ("recover", "relabel", "validate"))

    printed = [subprocess.CompletedProcess([], 0, json.dumps(plan), "") for plan in plans.values()]
    monkeypatch.setattr(chain.subprocess, "run", lambda *_, **__: printed.pop(0))
    run_main(chain, "--dataset", "digits", "--dry-run", "--device", "cpu")
    *_, last = capsys.readouterr().out.splitlines()
    assert last.split()[1] == f"{sum(seconds.values()) / 60:.1f}"


@pytest.mark.parametrize("rule, cost", (("cycle", 3.0), ("sum", 6.0)))
def test_an_estimate_counts_every_one_of_several_teachers(rule, cost, tmp_path, monkeypatch, capsys):
    """Also torchvision's, which squeeze does not train: an iteration of each in turn, or of all in a sum."""
    name = ("--name", tmp_path / "run")
    several = ("--arch", "resnet18,mobilenet_v2")
    run_main(squeeze, "--dataset", "imagenet1k", *name, *several, "--dry-run")
    plans = {"squeeze": json.loads(capsys.readouterr().out),
             "recover": plan_of(capsys, recover, *name, *several, "--teachers", rule),
             "relabel": plan_of(capsys, relabel, *name, *several, "--epochs", 4),
             "validate": plan_of(capsys, train, *name, "--epochs", 4)}
    seconds = {"resnet18": 2.0, "mobilenet_v2": 4.0}
    monkeypatch.setattr(estimate, "measure_rates", lambda arch, *_: estimate.Rates(1, 1, seconds[arch]))
    found = estimate.estimate(plans, DATASETS["digits"], None, torch.device("cpu"))
    settings = plans["recover"]["settings"]
    assert found["recover"][0] == settings["iteration"] * plans["recover"]["images_computed"] * cost
    assert found["relabel"][0] == 4 * plans["recover"]["images"] * 2


def test_the_rates_of_a_network_are_measured():
    rates = estimate.measure_rates("mobilenet_v2", "torchvision", DATASETS["digits"], 4, torch.device("cpu"))
    assert 0 < rates.forward < rates.train and rates.recover > rates.forward / 4


@pytest.mark.parametrize("start, names", [
    ("noise", ["squeeze", "recover", "relabel"]), ("picked", ["squeeze", "pick", "recover", "relabel"]),
    ("only-picked", ["squeeze", "pick", "relabel"])])
def test_what_images_begin_as_says_the_steps_and_the_controls(start, names):
    steps = [name for name, *_ in chain.steps_of(start)]
    assert steps[:len(names)] == names
    assert ("picked real images" in steps) == (start == "picked")
    assert {"random real images", "hard labels", "summary"} <= {*steps}


def test_a_start_that_the_user_typed_is_part_of_the_way_on():
    args = chain.get_args(["--dataset", "photos", "--start", "noise", "--start", "picked", "--merge", "0.5"])
    assert chain.way_on(args, ["squeeze"]) == "sh run.sh photos --start picked --merge 0.5"
    args = chain.get_args(["--dataset", "cifar10+fadrm", "--start", "picked"])
    assert (args.dataset, args.start) == ("cifar10", "picked")
    assert chain.way_on(args, []) == "sh run.sh cifar10+fadrm"


@pytest.mark.parametrize("start, of_recover, of_pick, message", [
    ("noise", "--init picked", "", "no images are, and this chain picks none; add --start picked"),
    ("picked", "", "", "would begin with noise and not with the picked images; add --init picked"),
    ("picked", "--init picked", "--ipc-end 12", "120 images are to be picked and 100 recovered.*same --ipc"),
    ("picked", "--init picked --batch-size 99", "", "batches take 198 images, and 100 are to be picked"),
    ("picked", "--init picked --batch-size 10 --bn-target group", "", "of the groups; add --pick spread"),
    ("picked", "--init picked --bn-target group", "", "a batch would hold images of several ipc indices"),
    ("noise", "--bn-target group", "", "beside a folder of picked real images"),
    ("noise", "--bn-target class:0.5", "", "no statistics of the classes; add --class-statistics")])
def test_stages_that_do_not_fit_together_end_the_chain_before_the_first(
        start, of_recover, of_pick, message, tmp_path, capsys):
    flags = ("--dataset", "digits", "--name", tmp_path / "run", "--ipc-end", 10)
    squeezed = plan_of(capsys, squeeze, *flags[:4])
    picked = plan_of(capsys, pick, *flags, *of_pick.split())
    with pytest.raises(UserError, match=message):
        plans = {"squeeze": squeezed, "pick": picked,
                 "recover": plan_of(capsys, recover, *flags, *of_recover.split())}
        chain.check_start(start, plans)
        chain.check_targets(plans, tmp_path / "teacher.pth")


def test_statistics_that_an_earlier_call_wrote_are_taken(tmp_path, capsys):
    teacher = tmp_path / "run" / "teacher" / "teacher.pth"
    flags = ("--dataset", "digits", "--name", tmp_path / "run", "--ipc-end", 10)
    plans = {"squeeze": plan_of(capsys, squeeze, *flags[:4]), "pick": plan_of(capsys, pick, *flags)}
    for target, path in (("class:0.5", teacher.parent / "teacher.class_statistics.pth"),
                         ("group", tmp_path / "run" / "picked.groups.pth")):
        plans["recover"] = plan_of(capsys, recover, *flags, "--bn-target", target, "--init", "picked",
                                   "--batch-size", 10)
        with pytest.raises(UserError, match=f"--bn-target {target}"):
            chain.check_targets(plans, teacher)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        chain.check_targets(plans, teacher)


def test_a_teacher_that_the_user_names_by_either_flag_is_not_squeezes(tmp_path):
    args = chain.get_args(["--dataset", "digits", "--start", "noise", "--name", str(tmp_path)])
    trained = tmp_path / "teacher" / "teacher.pth"
    assert chain.trained_teacher(args, chain.split_flags(["--name", str(tmp_path)])) == trained
    for flag in ("--teacher", "--arch-path", "--recover.teacher"):
        assert chain.trained_teacher(args, chain.split_flags([flag, "x.pth"])) is None


def test_squeeze_is_left_out_where_every_stage_is_told_its_teacher(tmp_path):
    """Of another run or of the user; this run's own, such as one of --keep-epochs, has to be trained."""
    args = chain.get_args(["--dataset", "digits", "--start", "picked"])
    for words, trains in [((), True), (("--teacher", "x.pth"), False), (("--recover.teacher", "x.pth"), True),
                          (("--teacher", tmp_path / "run/teacher/teacher.e2.pth"), True),
                          (("--teacher", f"x.pth,{tmp_path}/run/teacher_convnet2/teacher.pth"), True)]:
        flags = chain.split_flags(["--name", str(tmp_path / "run"), *map(str, words)])
        assert chain.trains_teacher(args, flags) == trains
        commands = chain.make_commands("digits", flags, args.start, chain.trains_teacher(args, flags))
        assert ("squeeze" in commands) == trains and {"pick", "recover", "relabel"} <= commands.keys()


def test_images_that_stay_as_they_were_picked_are_where_relabel_looks():
    flags = {name: [] for name in chain.STAGES}
    commands = chain.make_commands("digits", flags, "only-picked")
    assert commands["pick"][-2:] == ["--exp-name", "images"]
    assert "--exp-name" not in chain.make_commands("digits", flags, "picked")["pick"]
