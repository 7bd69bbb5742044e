"""Checkpoints as they come: what is loaded and said of each layout in docs/teachers.md, of any stack of
wrappers, of what does not fit, and of a top-1 below the stated one."""
import argparse
import ast
import copy
import datetime
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sre2l.data.datasets import DATASETS
from sre2l.nets import teacher as teachers
from sre2l.nets.models import build_network
from sre2l.nets.teacher import find_stated_top1, load_teacher
from sre2l.nets.weights import CONTAINERS, PREFIXES, load_weights
from sre2l.run.errors import UserError
from sre2l.run.paths import ROOT
from sre2l.run.safe_load import safe_load
from tests.helpers import SMALL, bare_checkpoint, refused, run_main
from tests.test_label_files import Trap
from tests.test_properties import now_and_then
from tests.worlds import recover_flags
from validate import train

CIFAR10 = DATASETS["cifar10"]


def fill(network, seed):
    """Random values in all weights and buffers of a network, in place -> the network."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator) * 9 + 1)
    return network


@functools.cache
def fresh(seed, num_classes=10):
    """A network of ten classes; nobody may change it."""
    return fill(build_network(SMALL, num_classes, "torchvision")[0], seed)


def hold(*networks, **others):
    """A larger module. networks: (attribute, module) pairs."""
    module = nn.Module()
    for name, network in (*networks, *others.items()):
        setattr(module, name, network)
    return module


def lightning(module, **hyper_parameters):
    """A checkpoint as Lightning 2 writes it, of a LightningModule."""
    return {"epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.4.0", "loops": {"fit_loop": {}},
            "state_dict": module.state_dict(), "callbacks": {"ModelCheckpoint": {"best_model_score": None}},
            "optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": [],
            "hyper_parameters": hyper_parameters}


def old_names(network):
    """A state dict of before torch 0.4.1, without BatchNorm's counters."""
    return {key: value for key, value in network.state_dict().items() if "num_batches" not in key}


def write_safetensors(path, weights):
    """The format by hand: the header's length, the header as JSON, the bytes of all tensors."""
    names = {torch.float32: "F32", torch.int64: "I64"}
    header = {}
    content = b""
    for key, value in weights.items():
        data = value.numpy().tobytes()
        header[key] = {"dtype": names[value.dtype], "shape": list(value.shape),
                       "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


class Options(dict):
    """What a stranger's hyper-parameters may be: an object of a class that we do not have."""


# {layout: what torch.save is given}, of a network and another one of the same architecture. What is loaded
# and said stands in the table of docs/teachers.md.
LAYOUTS = {
    "a state dict alone": lambda net, _: net.state_dict(),
    "squeeze's own `teacher.pth`": lambda net, _: {
        "format": "sre2l-teacher-1", "arch": SMALL, "stem": "torchvision", "num_classes": 10,
        "top1": 61.5, "model": net.state_dict()},
    "torch's ImageNet example: `state_dict` of DataParallel": lambda net, _: {
        "epoch": 90, "arch": "resnet18", "state_dict": nn.DataParallel(net).state_dict(),
        "best_acc1": torch.tensor(69.8), "optimizer": {"state": {}}},
    "torchvision's references: `model`, `args`": lambda net, _: {
        "model": net.state_dict(), "args": argparse.Namespace(lr=0.1), "epoch": 3},
    "the same with `model_ema`": lambda net, other: {
        "model": net.state_dict(), "model_ema": AveragedModel(other).state_dict()},
    "`model_ema` alone, of AveragedModel": lambda net, _: {
        "model_ema": AveragedModel(net).state_dict(), "epoch": 3},
    "timm: `state_dict`, `state_dict_ema`": lambda net, other: {
        "state_dict_ema": other.state_dict(), "state_dict": net.state_dict(), "metric": 70.0},
    "`ema` alone": lambda net, _: {"ema": net.state_dict(), "step": 7},
    "kuangliu's: `net`, `acc`": lambda net, _: {
        "net": nn.DataParallel(net).state_dict(), "acc": 95.0, "epoch": 1},
    "torch's tutorial: `model_state_dict`": lambda net, _: {
        "epoch": 3, "model_state_dict": net.state_dict(), "optimizer_state_dict": {}, "loss": 0.4},
    "`state_dict` inside `model`": lambda net, _: {
        "model": {"name": "x", "state_dict": net.state_dict()}},
    "settings under `model`, weights under `net`": lambda net, _: {
        "model": {"width": 64}, "net": net.state_dict()},
    "without BatchNorm's counters": lambda net, _: {"state_dict": old_names(nn.DataParallel(net))},
    "torch.compile": lambda net, _: {"model": torch.compile(net).state_dict()},
    "torch.compile around DDP, or within": lambda net, _: torch.compile(
        nn.DataParallel(torch.compile(net))).state_dict(),
    "one block compiled": lambda net, _: {
        key.replace("stage2.", "stage2._orig_mod."): value for key, value in net.state_dict().items()},
    "Lightning": lambda net, _: lightning(hold(model=net), lr=0.1),
    "Lightning, compiled, with a loss": lambda net, _: lightning(
        hold(net=torch.compile(net), criterion=nn.Linear(2, 3, bias=False))),
    "a student beside its teacher": lambda net, other: lightning(hold(teacher=other, student=net)),
    "one prefix in another": lambda net, _: hold(model=nn.DataParallel(hold(backbone=net))).state_dict(),
    "an epoch among the weights": lambda net, _: {**net.state_dict(), "epoch": 3},
    "half precision": lambda net, _: {"model": copy.deepcopy(net).half().state_dict()},
    "before torch 1.6": lambda net, _: {"model": net.state_dict()},
    "`.safetensors`, with the package": lambda net, _: net.state_dict(),
    "`.safetensors`, without it": lambda net, _: net.state_dict(),
    "a whole network, or DataParallel": lambda net, _: {"model": nn.DataParallel(nn.Linear(2, 2))},
    "Lightning, settings of a class of its own": lambda net, _: lightning(hold(model=net), cfg=Options(a=1)),
    "another number of classes": lambda *_: fresh(0, 20).state_dict(),
    "another network": lambda *_: {"net": build_network("mobilenet_v2", 10, "torchvision")[0].state_dict()},
    "OpenMMLab: `backbone` and `head`": lambda net, _: {"meta": {}, "state_dict": {
        key.replace("fc.", "head.fc.") if key.startswith("fc.") else f"backbone.{key}": value
        for key, value in net.state_dict().items()}},
    "no container that we know": lambda net, other: {"student": net.state_dict(), "epoch": 3},
    "two networks under one name": lambda net, other: {
        **net.state_dict(), **nn.DataParallel(other).state_dict()},
}


def rows_of_the_page():
    """{layout: (what is loaded, what is said)} of the table in docs/teachers.md."""
    text = (ROOT / "docs" / "teachers.md").read_text()
    table = text.partition("| layout | loaded | said |\n|---|---|---|\n")[2].partition("\n\n")[0]
    return {layout: (loaded, said)
            for _, layout, loaded, said, _ in (re.split(r"\s*\|\s*", line) for line in table.splitlines())}


def test_the_page_has_a_row_for_every_layout():
    assert list(rows_of_the_page()) == list(LAYOUTS)


def write_layout(path, layout, monkeypatch):
    """Save the networks of seeds 1 and 2 in a layout -> the file's path."""
    content = LAYOUTS[layout](fresh(1), fresh(2))
    if ".safetensors" not in layout:
        torch.save(content, path, _use_new_zipfile_serialization=layout != "before torch 1.6")
        return path
    if "without" in layout:
        monkeypatch.setitem(sys.modules, "safetensors", None)
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    else:
        pytest.importorskip("safetensors")
    write_safetensors(path.with_suffix(".safetensors"), content)
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_loaded_and_said_is_what_the_page_says(layout, tmp_path, capsys, monkeypatch):
    path = write_layout(tmp_path / "t.pth", layout, monkeypatch)
    loaded, said = rows_of_the_page()[layout]
    if loaded == "refused":
        with pytest.raises(UserError) as caught:
            load_teacher(CIFAR10, path, SMALL)
        found = str(caught.value)
    else:
        weights = load_teacher(CIFAR10, path, SMALL).network.state_dict()
        found = capsys.readouterr().err
        for key, value in fresh(1).state_dict().items():
            if layout == "half precision" and value.is_floating_point():
                value = value.half().float()
            if not (layout.startswith("without") and key.endswith("num_batches_tracked")):
                assert torch.equal(weights[key], value), key

    parts = re.findall("`([^`]+)`", said)
    assert parts or said == "nothing"
    assert all(part in found for part in parts), found
    assert found.startswith(f"{path}: ") if parts else not found
    assert len(found.strip().splitlines()) <= (4 if "saved = " in found else 1)


def test_what_a_refusal_tells_one_to_run_makes_a_file_that_loads(tmp_path, monkeypatch):
    """Both forms: of a dictionary with weights, and of a whole network."""
    flags = ("--dataset", "cifar10", "--model", SMALL, "--device", "cpu", "--evaluate")
    for content in (lightning(hold(model=fresh(1)), cfg=Options()), nn.DataParallel(fresh(1))):
        path = tmp_path / "t.ckpt"
        torch.save(content, path)
        *_, first, second = refused(train, *flags, path).splitlines()
        if isinstance(content, nn.Module):
            second = second.replace('saved["state_dict"]', second.partition("whole network: ")[2])
        second = second.replace("weights.pth", str(tmp_path / "weights.pth"))
        with monkeypatch.context() as patch:  # a Python of the user's own has no such variable
            patch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
            exec(f"import torch\n{first.strip()}\n{second.strip()}")
        found = load_teacher(CIFAR10, tmp_path / "weights.pth", SMALL).network.state_dict()
        assert all(torch.equal(found[key], value) for key, value in fresh(1).state_dict().items())


class Call:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nobody_is_told_to_open_an_attack(tmp_path):
    """A function that torch blocks, those that come with Python, and our own checkpoints."""
    sprung = str(tmp_path / "sprung")
    for value in (Call(os.mkdir, sprung), Call(eval, "1 + 1"), Trap(tmp_path / "sprung"),
                  Call(subprocess.check_output, ["touch", sprung]), Call(shutil.copytree, "/etc/opt", sprung),
                  Call(importlib.import_module, "this")):
        torch.save({"model": value}, tmp_path / "t.pth")
        with pytest.raises(UserError, match="not a checkpoint that loads safely") as caught:
            load_teacher(CIFAR10, tmp_path / "t.pth", SMALL)
        assert "torch.load" not in str(caught.value)
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "t.pth")
    with pytest.raises(UserError, match="torch.nn.modules.linear.Linear") as caught:
        safe_load(tmp_path / "t.pth", "checkpoint")
    assert "torch.load" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    path = tmp_path / 't"\'.pth'
    torch.save({"model": datetime.datetime(2020, 1, 1)}, path)
    with pytest.raises(UserError, match="datetime") as caught:
        load_teacher(CIFAR10, path, SMALL)
    assert ast.parse(str(caught.value).splitlines()[2].strip())
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "t.pt")
    with pytest.raises(UserError, match="an archive of TorchScript, which holds code; give the") as caught:
        load_teacher(CIFAR10, tmp_path / "t.pt", SMALL)
    assert "weights_only" not in str(caught.value)


def test_a_safetensors_file_that_is_cut_or_not_there(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "t.safetensors"
    with pytest.raises(UserError, match="no such checkpoint"):
        load_teacher(CIFAR10, path, SMALL)
    write_safetensors(path, fresh(1).state_dict())
    for name in ("t.pth", "t.SAFETENSORS"):  # whatever it is called
        loaded = load_teacher(CIFAR10, shutil.copy(path, tmp_path / name), SMALL)
        assert torch.equal(loaded.network.fc.weight, fresh(1).fc.weight)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged, or no safetensors file"):
        load_teacher(CIFAR10, path, SMALL)


def test_what_is_said_leaves_the_json_of_a_dry_run_alone(world, tmp_path, capsys):
    torch.save(lightning(hold(model=fresh(1))), tmp_path / "t.ckpt")
    run_main(*recover_flags(world, "--teacher", tmp_path / "t.ckpt", "--dry-run"))
    printed = capsys.readouterr()
    assert json.loads(printed.out)["settings"]["teacher"]["arch"] == SMALL
    assert "prefix 'model.' taken off" in printed.err


# Wrappers upon wrappers

def tiny(seed):
    """A network with a child whose name is a prefix, and one whose name is a wrapper's."""
    head = hold(module=nn.Linear(3, 2))
    return fill(hold(model=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3), head=head), seed)


WRAPPINGS = {"DataParallel": nn.DataParallel, "compile": torch.compile, "average": AveragedModel,
             **{prefix: lambda net, prefix=prefix: hold((prefix, net), criterion=nn.Linear(2, 1))
                for prefix in PREFIXES}}


@now_and_then
@given(wrappings=st.lists(st.sampled_from(sorted(WRAPPINGS)), max_size=5),
       containers=st.lists(st.sampled_from(CONTAINERS), max_size=2))
def test_any_stack_of_wrappers_loads_the_same_weights(wrappings, containers):
    network = tiny(1)
    for wrapping in wrappings:
        network = WRAPPINGS[wrapping](network)
    checkpoint = network.state_dict()
    for container in containers:
        checkpoint = {"epoch": 3, container: checkpoint, "optimizer": {"state": {}}}
    empty = tiny(2)
    load_weights(empty, checkpoint, "t.pth", "tiny")
    assert all(torch.equal(empty.state_dict()[key], value) for key, value in tiny(1).state_dict().items())


KEYS = [key for key in tiny(1).state_dict() if not key.endswith("num_batches_tracked")]


@now_and_then
@given(key=st.sampled_from(KEYS), wrapping=st.sampled_from((None, *sorted(WRAPPINGS))))
def test_a_weight_that_is_missing_too_much_or_of_another_shape_is_named(key, wrapping):
    """Under any wrapping, and nothing is loaded then."""
    network = WRAPPINGS[wrapping](tiny(1)) if wrapping else tiny(1)
    weights = network.state_dict()
    whole = next(name for name in weights if name.replace("_orig_mod.", "").endswith(key))
    name = key.replace("module.", "")
    value = weights[whole]
    empty = tiny(2)
    for change, words in (
            ({}, f"1 weights missing and 0 unknown for tiny ({name} is missing)"),
            ({whole: value, f"{whole}2": value},
             f"0 weights missing and 1 unknown for tiny ({name}2 is unknown)"),
            ({whole: value[None]},
             f"{name} is {(1, *value.shape)} in the checkpoint, {tuple(value.shape)} in tiny"),
            ({f"{whole}2": value}, f"({name} is missing, {name}2 is unknown)")):
        changed = {other: weights[other] for other in weights if other != whole} | change
        with pytest.raises(UserError) as caught:
            load_weights(empty, {"model": changed}, "t.pth", "tiny")
        assert words in str(caught.value)
        assert str(caught.value).endswith("check --arch and --num-classes")
    assert all(torch.equal(empty.state_dict()[key], value) for key, value in tiny(2).state_dict().items())


def test_a_message_shows_a_few_of_many_names_and_keys_may_be_numbers():
    with pytest.raises(UserError, match="top, which holds 0, 1, 2, 3, 4 and 5 more"):
        load_weights(tiny(1), {number: number for number in range(10)}, "t.pth", "tiny")
    with pytest.raises(UserError, match="top, which holds nothing"):
        load_weights(tiny(1), {}, "t.pth", "tiny")
    circle = {"epoch": 3}
    circle["model"] = circle
    with pytest.raises(UserError, match="top, which holds epoch, model"):
        load_weights(tiny(1), circle, "t.pth", "tiny")


class Like(nn.Module):
    """A network with layers that are called as wrappers, counters and helping heads are."""

    def __init__(self):
        super().__init__()
        self.aux1 = nn.Linear(2, 3)
        self.AuxLogits = nn.Linear(2, 3)
        self.register_buffer("n_averaged", torch.ones(3))


class LikeAWrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.module = nn.Linear(2, 3)


def test_a_networks_own_layers_are_loaded_whatever_their_names():
    for kind, wrap in ((Like, lambda net: net), (Like, nn.DataParallel), (LikeAWrapper, lambda net: net)):
        network = fill(kind(), 1)
        empty = kind()
        load_weights(empty, {"net": wrap(network).state_dict()}, "t.pth", "like")
        for key, value in network.state_dict().items():
            assert torch.equal(empty.state_dict()[key], value), key


def test_weights_that_are_no_floating_point_numbers_are_named():
    quantised = torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)
    for value in (torch.ones(3, dtype=torch.int8), torch.ones(3, dtype=torch.complex64), quantised):
        weights = tiny(1).state_dict() | {"bn.weight": value}
        with pytest.raises(UserError, match=f"bn.weight is of type {value.dtype} in the checkpoint"):
            load_weights(tiny(2), weights, "t.pth", "tiny")


@pytest.mark.parametrize("key, value", [
    ("arch", 5), ("stem", "zzz"), ("mean", None), ("std", (1, 2)), ("mean", ("a", 1, 1)), ("size", "32"),
    ("size", -1), ("num_classes", torch.tensor(10)), ("class_names", 5), ("dataset", 3), ("top1", "x"),
    ("arch_sha256", 1)])
def test_what_none_of_our_checkpoints_says_is_a_sentence(key, value, tmp_path):
    ours = {"format": "sre2l-teacher-1", "arch": SMALL, "num_classes": 10, "model": fresh(1).state_dict()}
    torch.save({**ours, key: value}, tmp_path / "t.pth")
    with pytest.raises(UserError, match=f"t.pth: says {key} is .*, which no checkpoint of ours has$"):
        load_teacher(CIFAR10, tmp_path / "t.pth")
    torch.save({"net": fresh(1).state_dict(), "format": torch.ones(2)}, tmp_path / "t.pth")
    load_teacher(CIFAR10, tmp_path / "t.pth", SMALL)


# The stated top-1

@pytest.mark.parametrize("checkpoint, stated", [
    ({"acc": 95.0}, 95), ({"acc": 0.95}, 95), ({"best_acc1": torch.tensor(69.75)}, 69.75),
    ({"best_prec1": np.float64(70.5)}, 70.5), ({"format": "sre2l-teacher-1", "top1": 0.5}, 0.5),
    ({"top1": None, "acc": "good", "best_acc": [3]}, None), ({"acc": float("nan")}, None), ({}, None),
    ({"acc": 250}, None), ({"best_acc1": torch.ones(2)}, None)])
def test_what_a_checkpoint_says_of_its_top1(checkpoint, stated):
    assert find_stated_top1(checkpoint) == stated


@pytest.mark.parametrize("top1, num_images, falls", [
    (60, 10_000, False), (50.1, 10_000, False), (50, 10_000, True), (20, 10_000, True), (46, 100, False),
    (44, 100, True), (80, 100, False)])
def test_a_fall_is_ten_points_and_more_than_luck(top1, num_images, falls, tmp_path):
    teacher = load_teacher(CIFAR10, bare_checkpoint(tmp_path / "t.pth", wrap=lambda w: {"net": w, "acc": 60}),
                           SMALL)
    assert bool(teachers.describe_fall(teacher, top1, num_images, None)) == falls
    assert not teachers.describe_fall(teacher, top1, num_images, [0, 1])  # a part of the classes


def test_a_teacher_below_its_stated_top1_is_warned_of_and_goes_on(world, tmp_path, monkeypatch, capsys):
    """8 of 20 are right; only what today's rules refuse is refused."""
    labels = torch.arange(10).repeat_interleave(2)
    number = torch.arange(20)
    answers = torch.where(number < 8, labels, (labels + 1 + 2 * (number % 2)) % 10)
    monkeypatch.setattr(teachers, "answer_all", lambda *_: (answers.numpy(), labels.numpy()))
    checkpoint = bare_checkpoint(tmp_path / "t.pth", wrap=lambda w: {"net": w, "acc": 93.5})
    flags = ("--val-dir", world / "real", "--teacher", checkpoint)
    run_main(*recover_flags(world, *flags, name=tmp_path / "run"))
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("warning: the checkpoint"))
    assert "says 93.50%" in line and "--stem, --input-size, --mean, --std or the class order" in line
    manifest = (tmp_path / "run" / "images.manifest.json").read_text()
    assert '"top1": null' in manifest and "93.5" not in manifest  # records stay as they were


def test_evaluate_says_that_a_student_is_below_its_stated_top1(tmp_path, capsys):
    for stated, words in ((60.0, "says 60.00%"), (12.0, None)):
        bare_checkpoint(tmp_path / "s.pth", wrap=lambda w, stated=stated: {"net": w, "acc": stated})
        run_main(train, "--dataset", "digits", "--evaluate", tmp_path / "s.pth", "--model", SMALL, "--device",
                 "cpu")
        out = capsys.readouterr().out
        assert "top1" in out and (words in out if words else "warning" not in out)
