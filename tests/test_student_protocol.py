"""The student's schedules, MSE with the own class, averaged weights, against formulas written out here."""
import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, MultiStepLR, SequentialLR
from torch.optim.optimizer import register_optimizer_step_post_hook

from sre2l.data.augment import apply_mix
from sre2l.data.label_files import label_path, read_label_batch
from sre2l.nets import parallel, training
from sre2l.nets.training import lr_factor
from sre2l.run.files import hash_json
from tests.fp64 import show_batch64
from tests.helpers import SMALL, refused, run_main, write_label_batch
from tests.test_continue import interrupt
from tests.test_interrupts import handlers, interrupted  # noqa: F401 (handlers: a fixture)
from tests.test_stop_training import results_of
from tests.test_training import plain_network
from tests.worlds import labelled_images
from validate import losses, protocol, student, train
from validate.data import find_data, load_stored_batches

DEFAULTS = {  # the hash of the settings that older checkpoints have of these command lines
    "": "0b5039fe650be0157528f0aea14a6dd11321e51c17ae590299f4a4c848fad81b",
    "--sgd --kl-t2 --decay-all --warmup-epochs 5":
        "b0a8206808a1d71944b180caa621233f0eb21504c247d1e9a94e28bfdc2be59c",
    "--hard-labels": "9941497e192e42a424946fd336ec7a97798a8e996d919c488faf92e6032622dd"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """-> flags of validate for 40 images with labels for two epochs of three batches."""
    root = tmp_path_factory.mktemp("protocol")
    return *labelled_images(root, "cutmix", "--device", "cpu"), "--device", "cpu", "--model", SMALL


def parse(text):
    return train.get_args(text.split())


@pytest.mark.parametrize("text", DEFAULTS)
def test_settings_that_have_their_defaults_leave_a_checkpoints_identity_as_it_was(text):
    args = parse(f"--dataset cifar10 --model resnet18 {text}")
    assert hash_json(protocol.make_settings(args, train.data_spec(args))) == DEFAULTS[text]


def ssrs(epochs, z, epoch):
    """EDC's code, as methods of its paper say it: a cosine over z x epochs, from 5/6 on its value there times
    the part of the epochs that is left."""
    if epoch <= 5 * epochs / 6:
        return 0.5 * (1 + np.cos(np.pi * epoch / epochs / z))
    return 0.5 * (1 + np.cos(np.pi * (5 / 6) / z)) * (1 - epoch / epochs)


SCHEDULES = {  # flags, and torch's scheduler of an optimiser and a number of epochs
    "--slowdown 1.5": lambda o, n: CosineAnnealingLR(o, 1.5 * n),
    "--lr-schedule cosine --slowdown 2": lambda o, n: CosineAnnealingLR(o, 2 * n),
    "--lr-schedule linear": lambda o, n: LinearLR(o, 1, 0, n),
    "--lr-schedule linear --slowdown 2": lambda o, n: LinearLR(o, 1, 0.5, n),
    "--lr-schedule ssrs --slowdown 2": lambda o, n: LambdaLR(o, partial(ssrs, n, 2)),
    "--lr-schedule ssrs": lambda o, n: LambdaLR(o, partial(ssrs, n, 1)),
    "--lr-schedule multistep --milestones 0.8,0.9,0.95":  # EDC, CIFAR-10
        lambda o, n: MultiStepLR(o, [n * 80 // 100, n * 90 // 100, n * 95 // 100], 0.5),
    "--lr-schedule multistep --milestones 2/3,5/6 --milestone-factor 0.2":  # CIM
        lambda o, n: MultiStepLR(o, [2 * n // 3, 5 * n // 6], 0.2)}


@pytest.mark.parametrize("epochs, warmup", ((1, 0), (7, 0), (300, 0), (1000, 0), (105, 5)))
@pytest.mark.parametrize("text", SCHEDULES)
def test_rates_equal_torchs_schedulers(text, epochs, warmup):
    falls = protocol.make_schedule(parse(text))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1, dtype=torch.float64))], lr=1.0)
    theirs = SCHEDULES[text](optimizer, epochs - warmup)
    if warmup:
        theirs = SequentialLR(optimizer, [LinearLR(optimizer, 0.01, total_iters=warmup), theirs], [warmup])
    for epoch in range(epochs):
        found = lr_factor(epoch, epochs, warmup, falls)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), epoch
        optimizer.step()
        theirs.step()


def test_where_the_published_schedules_end():
    """By methods of the papers: half and a quarter of the rate; SSRS drops from 0.629 to 0.103 of 300."""
    def at(text, epoch, epochs=300):
        return lr_factor(epoch, epochs, 0, protocol.make_schedule(parse(text)))
    assert at("--slowdown 2", 300) == pytest.approx(0.5) and at("--slowdown 1.5", 300) == pytest.approx(0.25)
    steps = [round(at("--lr-schedule ssrs --slowdown 2", epoch), 3) for epoch in (0, 250, 251, 300)]
    assert steps == [1.0, 0.629, 0.103, 0.0]
    milestones = "--lr-schedule multistep --milestones 0.8,0.9,0.95"
    assert [at(milestones, epoch, 1000) for epoch in (799, 800, 899, 900, 949, 950, 999)] == [
        1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def train_in_fp64(args, decay):
    """MSE over B x C of raw logits + 0.1 x cross entropy on the own class; SGD with momentum whose rate falls
    by a line; averaged after each step -> (the averaged parameters, the last ones), of two epochs."""
    network = plain_network()
    momenta = [torch.zeros_like(p) for p in network.parameters()]
    averages = [p.detach().clone() for p in network.parameters()]
    spec = train.data_spec(args)
    data = find_data(args, spec, torch.device("cpu"))
    mean, std = (torch.tensor(value, dtype=torch.float64).view(3, 1, 1) for value in (spec.mean, spec.std))
    for batch, pixels, labels in load_stored_batches(args, data, 0, torch.device("cpu")):
        outputs = network(apply_mix((pixels.double() / 255 - mean) / std, labels.mix))
        mse = ((outputs - labels.logits.double()) ** 2).sum() / outputs.numel()
        rows = torch.arange(len(outputs))
        own = torch.from_numpy(data.images.labels[batch.rows])
        cross_entropy = (outputs.exp().sum(1).log() - outputs[rows, own]).mean()
        gradients = torch.autograd.grad(mse + 0.1 * cross_entropy, network.parameters())
        with torch.no_grad():
            for p, g, v, a in zip(network.parameters(), gradients, momenta, averages):
                v.mul_(0.9).add_(g)
                p -= 0.05 * (1, 0.75)[batch.epoch] * v
                a.copy_(decay * a + (1 - decay) * p)
    return averages, list(network.parameters())


@pytest.mark.parametrize("ema", (0.0, 0.7))
def test_mse_class_weight_schedule_and_average_equal_a_loop_over_whole_batches(
        ema, labelled, tmp_path, monkeypatch):
    """In 1, 2 or 8 micro-batches, the last batch a short one: the weights after six steps, fp64."""
    flags = (*labelled, "--loss", "mse", "--class-weight", 0.1, "--lr-schedule", "linear", "--slowdown", 2,
             "--sgd", "-lr", 0.05, "--weight-decay", 0, "--ema", ema)
    monkeypatch.setattr(student, "build_for", lambda *_: (plain_network(), "torchvision"))
    monkeypatch.setattr(losses, "show_batch", show_batch64)
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: (0.0, 0.0))
    args = train.get_args([str(flag) for flag in flags])
    train.choose_folders(args, tmp_path.parent / "run")
    args.train_dir, args.fkd_path = (str(train.run_folder(args) / name) for name in ("images", "labels"))
    averages, last = train_in_fp64(args, ema)
    wanted = averages if ema else last
    for steps in (1, 2, 8):
        folder = tmp_path / str(steps)
        run_main(train, *flags, "--gradient-accumulation-steps", steps, "--output-dir", folder)
        found = list(torch.load(folder / "seed0" / "checkpoint.pth")["model"].values())
        assert max((one - other).abs().max() for one, other in zip(found, wanted, strict=True)) < 1e-10
        settings = json.loads((folder / "settings.json").read_text())["settings"]
        assert settings["loss"] == "MSE of raw logits + 0.1 x cross entropy on the own class"
        assert settings["temperature"] is None and settings.get("ema") == (ema or None)
    assert ema == 0 or max((one - other).abs().max() for one, other in zip(averages, last)) > 1e-3


def test_kl_takes_the_own_class_as_well():
    outputs, logits = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    classes = torch.tensor([0, 9, 3, 3, 5, 1])
    p, q = ((x / 4).exp() / (x / 4).exp().sum(1, keepdim=True) for x in (logits, outputs))
    wanted = (p * (p / q).log()).sum() / 6
    wanted -= 0.3 * sum((outputs[i] - outputs[i].exp().sum().log())[classes[i]] for i in range(6)) / 6
    found = losses.student_loss(parse("--class-weight 0.3"), outputs, p, classes, temperature=4)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)


def test_hard_labels_take_the_place_of_either_loss(labelled, tmp_path):
    """So that the control of a run with --loss mse differs in nothing but the labels."""
    histories = []
    for name, more in (("kl", ()), ("mse", ("--loss", "mse", "--class-weight", 1))):
        run_main(train, *labelled, "--hard-labels", *more, "--output-dir", tmp_path / name)
        histories.append(torch.load(tmp_path / name / "seed0" / "checkpoint.pth")["history"])
    assert histories[0] == histories[1]


def test_what_is_measured_has_averaged_parameters_and_live_statistics(labelled, tmp_path, monkeypatch):
    """Beside a run without --ema, which takes the same steps: the parameters after each of these, averaged
    by a sum over all of them; buffers byte for byte."""
    met, measured = [], []

    def keep(optimizer, *_):
        met.append([p.detach().double().clone() for group in optimizer.param_groups for p in group["params"]])

    def measure(network, *_, **__):
        measured.append({key: value.clone() for key, value in network.state_dict().items()})
        return 0.0, 0.0
    monkeypatch.setattr(train, "evaluate", measure)
    torch.manual_seed(0)
    flags = (*labelled, "--decay-all", "--adamw-weight-decay", 0)  # one group: parameters in their order
    handle = register_optimizer_step_post_hook(keep)
    run_main(train, *flags, "--output-dir", tmp_path / "plain")
    handle.remove()
    run_main(train, *flags, "--ema", 0.8, "--output-dir", tmp_path / "ema")
    plain, averaged = measured[1], measured[3]

    torch.manual_seed(0)
    first = [p.detach().double() for p in student.build_for(
        train.data_spec(train.get_args([str(flag) for flag in flags])), SMALL, None)[0].parameters()]
    wanted = [0.8 ** 6 * value for value in first]
    for number, parameters in enumerate(met):
        wanted = [w + 0.2 * 0.8 ** (5 - number) * p for w, p in zip(wanted, parameters)]
    names = [key for key in plain if "running" not in key and "tracked" not in key]
    assert len(met) == 6 and len(names) == len(wanted)
    for key, value in zip(names, wanted):
        assert (averaged[key] - value).abs().max() < 1e-5 * max(1, value.abs().max())
    assert all(torch.equal(averaged[key], plain[key]) for key in plain.keys() - set(names))
    assert any((averaged[key] - plain[key]).abs().max() > 1e-3 for key in names)
    # The student's file is what was measured.
    found = torch.load(tmp_path / "ema" / "seed0" / "checkpoint.pth")["model"]
    assert all(torch.equal(found[key], value) for key, value in averaged.items())


def test_an_average_is_continued_after_a_signal_and_after_a_kill(labelled, tmp_path, monkeypatch):
    """Stopped in the second epoch, and dead in an evaluation: the weights' bytes are those of a run in
    peace."""
    monkeypatch.setattr(training, "CHECKPOINT_SEC", 0)
    flags = (train, *labelled, "--ema", 0.8, "--lr-schedule", "ssrs")
    folders = [tmp_path / name for name in ("peace", "signal", "kill")]
    run_main(*flags, "--output-dir", folders[0])
    interrupted(monkeypatch, parallel, "sum_gradients", 5, (*flags, "--output-dir", folders[1]))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, train, 2)
        run_main(*flags, "--output-dir", folders[2])
    paths = [folder / "seed0" / "checkpoint.pth" for folder in folders]
    assert all(len(torch.load(path)["history"]) == 1 for path in paths[1:])
    wanted = results_of(train, folders[0])
    for folder in folders[1:]:
        assert results_of(train, folder) != wanted
        run_main(*flags, "--output-dir", folder)
        assert results_of(train, folder) == wanted


def test_a_training_that_is_not_measured_says_how_far_it_is(labelled, tmp_path, monkeypatch, capfd):
    flags = (train, *labelled, "--eval-every", 2)
    run_main(*flags, "--output-dir", tmp_path / "quick")
    assert "epoch 1/2" not in capfd.readouterr().out  # two epochs are over before a line is due
    monkeypatch.setattr(train, "LOG_SEC", 0)
    run_main(*flags, "--output-dir", tmp_path / "slow")
    lines = [line for line in capfd.readouterr().out.splitlines() if "  epoch " in line]
    assert lines[0].startswith("seed 0  epoch 1/2  loss ") and " to go" in lines[0] and "top1" not in lines[0]
    assert lines[1].startswith("seed 0  epoch 2/2  loss ") and "  top1 " in lines[1]


def test_a_student_is_not_written_among_its_images_or_labels(labelled, tmp_path):
    run = labelled[labelled.index("--name") + 1]
    (tmp_path / "link").symlink_to(run / "images")
    for folder in (run / "images", run / "labels" / "epoch_0" / "student", tmp_path / "link" / "student"):
        assert "where a student only reads" in refused(train, *labelled, "--output-dir", folder, "--dry-run")


REFUSED = {
    "--lr-schedule multistep": "--milestones 0.8,0.9,0.95",
    "--lr-schedule multistep --milestones 0.5 --slowdown 2": "--slowdown 2 would do nothing",
    "--milestones 0.5": "would do nothing with --lr-schedule cosine",
    "--milestone-factor 0.2": "--milestone-factor would do nothing with --lr-schedule cosine",
    "--warmup-epochs 2": "is not below --epochs 2"}


@pytest.mark.parametrize("text", REFUSED)
def test_flags_that_contradict_each_other_are_refused(text, labelled):
    assert REFUSED[text] in refused(train, *labelled, *text.split(), "--dry-run")


@pytest.mark.parametrize("text", ("--ema 1", "--slowdown 0.5", "--milestones 1", "--milestones 0.9,0.8",
                                  "--milestones x", "--milestones 1/0", "--lr-schedule constant"))
def test_values_that_mean_nothing_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        parse(text)
    assert text.split()[0] in capsys.readouterr().err


def test_mse_refuses_labels_that_hold_no_raw_logits(labelled, tmp_path):
    """Labels of 40 images without a manifest; KL trains on them, as it always has."""
    args = train.get_args([str(flag) for flag in labelled])
    labels = train.run_folder(args) / "labels"
    for epoch in range(2):
        for index in range(3):
            batch = read_label_batch(labels, epoch, index)
            (label_path(tmp_path / "soft", epoch, index)).parent.mkdir(parents=True, exist_ok=True)
            probabilities = (9 * batch.logits.float()).softmax(1).half()
            write_label_batch(tmp_path / "soft", epoch, index, batch._replace(logits=probabilities))
    flags = (*labelled, "--fkd-path", tmp_path / "soft", "--output-dir", tmp_path / "student")
    assert "these labels hold probabilities" in refused(train, *flags, "--loss", "mse")
    run_main(train, *labelled, "--loss", "mse", "--epochs", 1, "--output-dir", tmp_path / "other")
