"""Recover beyond SRe2L: real images to begin with, blocks, merges, the crop's curriculum, class order."""
import argparse
import contextlib
import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from recover import plan, real_start, recover
from recover.batches import draw, plan_batches
from recover.blocks import block_list, plan_blocks
from recover.objective import TERMS, Terms
from recover.state import StateKeeper
from recover.step import Stepper
from recover.views import draw_view, least_areas
from sre2l.data.augment import normalise, unit_rng
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import decode
from sre2l.nets.models import build_network
from sre2l.nets.teacher import Teacher
from sre2l.run.errors import UserError
from sre2l.run.files import read_json
from tests.helpers import before_call, keep_last_images, refused, run_main, save_noise, synthetic_folder
from tests.nets import Formula, SmallNet, like_trained
from tests.test_continue import files_of
from tests.test_interrupts import count_steps, handlers, interrupted  # noqa: F401 (a fixture)
from tests.worlds import recover_flags

COMMON = ("--dataset", "cifar10", "--device", "cpu", "--teacher", __file__, "--num-classes", 5, "--jitter", 2)
SPEC = dataclasses.replace(DATASETS["cifar10"], num_classes=5, size=16)


# -- a whole run against formulas in fp64

def bilinear(start, stop, size):
    """The matrix (size, n) of a bilinear resize of places start..stop-1 of n pixels, half-pixel centres."""
    length = stop - start
    rows = torch.zeros(size, stop, dtype=torch.float64)
    for i in range(size):
        at = min(max((i + 0.5) * length / size - 0.5, 0), length - 1)
        low = math.floor(at)
        rows[i, start + low] += 1 - (at - low)
        rows[i, start + min(low + 1, length - 1)] += at - low
    return rows


def resized(x, size, window=None):
    top, left, height, width = window or (0, 0, *x.shape[-2:])
    rows, columns = bilinear(top, top + height, size), bilinear(left, left + width, size)
    return rows @ x[..., :rows.shape[1], :columns.shape[1]] @ columns.T


def expected_images(network, pairs, index, real, blocks, merge, areas, lr, r_bn):
    """The last iterate of one batch. real: {pair: (3, H, W)}; blocks: (steps, size); areas: of each step."""
    rng = unit_rng(3, index)
    shape = len(pairs), 3, blocks[0][1], blocks[0][1]
    x = torch.from_numpy(rng.standard_normal(shape, dtype="float32")).double()
    edges = [torch.tensor([(edge - m) / s for m, s in zip(SPEC.mean, SPEC.std)]) for edge in (0, 1)]
    low, high = (edge.double().view(3, 1, 1) for edge in edges)
    total = sum(steps for steps, _ in blocks)
    t = 0
    for number, (steps, size) in enumerate(blocks):
        patches = real and torch.stack([resized(real[pair], size) for pair in pairs])
        if number == 0 and real:
            x = patches
        if number:
            x = resized(x, size)
            x = (1 - merge) * x + (merge * patches if merge else 0)
        x.requires_grad_()
        adam = torch.optim.Adam([x], betas=(0.5, 0.9), eps=1e-8)
        for _ in range(steps):
            view = draw_view(size, 2, False, True, rng, areas[t])
            y = resized(x, size, view.window)
            y = (y.flip(3) if view.flip else y).roll(view.roll, (2, 3))
            formula = Formula(network)
            ce = F.cross_entropy(formula.small(y), torch.tensor([label for _, label in pairs]))
            distances = list(formula.norms.values())
            adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * t / total)) / 2
            x.grad, = torch.autograd.grad(ce + r_bn * (10 * distances[0] + sum(distances[1:])), x)
            adam.step()
            x.data = torch.minimum(torch.maximum(x.data, low), high)
            t += 1
        x = x.detach()
    return x


@pytest.fixture
def in_fp64(monkeypatch):
    """Recover computes a SmallNet in float64 -> the network."""
    torch.manual_seed(0)
    network = like_trained(SmallNet(head_norm=True), 4)
    teacher = Teacher(network, "small", "torchvision", 5, None, SPEC.mean, SPEC.std, 16, None, None, "", "0")

    def draw_double(*args):
        noise, views = draw(*args)
        return noise.double(), views

    monkeypatch.setattr("sre2l.nets.teacher.load_teacher", lambda *args, **options: teacher)
    monkeypatch.setattr(Teacher, "check_takes", lambda self, size: None)  # it tries float32
    monkeypatch.setattr(recover, "draw", draw_double)
    monkeypatch.setattr(real_start, "normalise", lambda *args: normalise(*args).double())
    return network


def real_folder(root, size=16, ipc=2, suffix=".png"):
    return synthetic_folder(root, 5, ipc, size, seed=8, suffix=suffix)


CASES = {
    "all": dict(blocks="3@12,4,2@12,3@16", merge=0.4, curriculum="cosine", milestone=0.5, low=0.3),
    "real, one block": dict(blocks="6", merge=0.0, curriculum="none", milestone=None, low=0.08),
    "noise, two sizes": dict(blocks="3@20,4", merge=0.0, curriculum="linear", milestone=1.0, low=0.5)}


@pytest.mark.parametrize("engine", ("fast", "plain"))
@pytest.mark.parametrize("case", CASES)
def test_a_run_in_blocks_is_its_formulas(in_fp64, case, engine, tmp_path, monkeypatch):
    """Two batches, the second one short; the last iterates, to 1e-9."""
    blocks, merge, curriculum, milestone, low = CASES[case].values()
    flags = [*COMMON, "--name", tmp_path / "run", "--blocks", blocks, "--crop-scale", low,
             "--engine", engine, "--seed", 3, "--lr", 0.1, "--r-bn", 0.2, "--batch-size", 4, "--ipc-end", 1,
             "--snapshot-every", 2]
    real = None
    if "noise" not in case:
        folder = real_folder(tmp_path / "real")
        save_noise(np.random.default_rng(1), 20, folder / "new001" / "class001_id000.png")  # another size
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SPEC.mean, SPEC.std))
        real = {(0, label): np.asarray(Image.open(folder / f"new{label:03d}" / f"class{label:03d}_id000.png"))
                for label in range(5)}
        real = {pair: ((torch.from_numpy(x.copy()).permute(2, 0, 1).float() / 255 - mean) / std).double()
                for pair, x in real.items()}
        flags += ["--init", folder]
    if merge:
        flags += ["--merge", merge]
    if curriculum != "none":
        flags += ["--crop-curriculum", curriculum, "--curriculum-milestone", milestone]
    lasts = keep_last_images(monkeypatch)
    run_main(recover, *flags)

    parts = [(steps, size or 16) for steps, size in block_list(blocks)]
    total = sum(steps for steps, _ in parts)
    areas = [low] * total
    for t in range(total):
        if curriculum != "none" and t < milestone * total:
            share = t / (milestone * total)
            fall = 1 - share if curriculum == "linear" else (1 + math.cos(math.pi * share)) / 2
            areas[t] = low + (1 - low) * fall
    for index, pairs in enumerate(([(0, 0), (0, 1), (0, 2), (0, 3)], [(0, 4)])):
        wanted = expected_images(in_fp64, pairs, index, real, parts, merge, areas, 0.1, 0.2)
        last = [images for images in lasts if len(images) == len(pairs)][-1]  # after those of snapshots
        assert (last - wanted).abs().max() < 1e-9
    with Image.open(tmp_path / "run" / "images.gif") as animation:
        assert animation.n_frames == len({*range(0, total, 2), total})


# -- what a kill leaves, and what ranges and processes change

@pytest.fixture
def blocks_run(in_fp64, tmp_path):
    """-> (flags of recover, the files of a run in peace): two batches, 3 + 2 + 2 iterations each."""
    flags = (recover, *COMMON, "--init", real_folder(tmp_path / "real"), "--blocks", "3@12,2,2",
             "--merge", 0.5, "--batch-size", 5, "--ipc-end", 2, "--crop-curriculum", "step",
             "--curriculum-milestone", 0.5)
    run_main(*flags, "--name", tmp_path / "whole")
    return (*flags, "--name", tmp_path / "run"), files_of(tmp_path / "whole" / "images")


@pytest.mark.parametrize("at", (2, 3, 4, 5, 7 + 4))
def test_a_run_in_blocks_continues_wherever_it_was_stopped(blocks_run, at, tmp_path, monkeypatch):
    """Within the first block, at its end, within and at the end of the second, and in the second batch."""
    flags, whole = blocks_run
    assert interrupted(monkeypatch, Stepper, "step", at, flags) == at
    steps = count_steps(monkeypatch)
    run_main(*flags)
    assert len(steps) == 14 - at and steps[0] == at % 7
    assert files_of(tmp_path / "run" / "images") == whole and len(whole) == 10


def test_a_run_in_blocks_that_dies_goes_on_from_its_last_state(blocks_run, tmp_path, monkeypatch):
    """As by kill -9, with a state after every iteration. Nothing of the batch begins anew."""
    flags, whole = blocks_run
    write = StateKeeper.write

    def die():
        raise MemoryError
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(StateKeeper, "save", lambda self, group, iteration, tensors: write(
            self, self.path(group), {"identity": self.identity(group), "iteration": iteration,
                                     "tensors": [tensor.clone() for tensor in tensors]}))
        before_call(patch, Stepper, "step", 6, die)
        run_main(*flags, "--save-every-sec", 0)
    steps = count_steps(monkeypatch)
    run_main(*flags)
    assert steps[:2] == [5, 6] and files_of(tmp_path / "run" / "images") == whole


def test_an_image_depends_on_its_real_image_and_not_on_the_range(blocks_run, tmp_path):
    flags, whole = blocks_run
    run_main(*flags, "--ipc-start", 1)
    found = files_of(tmp_path / "run" / "images")
    assert len(found) == 5 and found.items() <= whole.items()


def test_other_options_and_other_real_images_under_the_same_path_are_refused(blocks_run, tmp_path):
    """The last bit of one pixel counts."""
    flags, _ = blocks_run
    run_main(*flags)
    for other in (("--merge", 0.25), ("--blocks", "3@12,4"), ("--blocks", "3@12,2@8,2"),
                  ("--crop-curriculum", "linear"), ("--init", "noise", "--merge", 0)):
        assert "other settings" in refused(*flags, *other)
        assert "other settings" in refused(*flags, *other, "--dry-run")
    path = tmp_path / "real" / "new003" / "class003_id001.png"
    pixels = decode(path).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    message = refused(*flags)
    assert "other settings" in message and "init.images_sha256" in message


# -- the parts

def test_the_least_area_of_a_crop_falls_as_in_cda():
    """From 1 at the start to its end at t = m T; the published curriculum is the cosine with m = 1."""
    cosine = least_areas("cosine", 0.08, 1.0, 4000)
    assert cosine[0] == 1 and cosine[2000] == pytest.approx(0.54) and 0.08 < cosine[-1] < 0.0801
    linear = least_areas("linear", 0.2, 0.5, 8)
    assert linear == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2])
    assert least_areas("step", 0.08, 0.3, 10) == [1.0] * 3 + [0.08] * 7
    assert least_areas("step", 0.08, 0.25, 10) == [1.0] * 3 + [0.08] * 7  # t < 2.5
    for kind in ("none", "cosine", "linear", "step"):
        assert least_areas(kind, 0.3, 0.0, 5) == [0.3] * 5
    assert least_areas("none", 0.3, None, 3) == [0.3] * 3


@pytest.mark.parametrize("size", (12, 32, 224))
def test_a_least_area_of_one_is_the_whole_image(size):
    rng = np.random.default_rng(size)
    assert {draw_view(size, 0, False, True, rng, 1.0).window for _ in range(300)} == {(0, 0, size, size)}


def test_batches_by_class_hold_one_class_after_the_other():
    batches = plan_batches([2, 5, 7], 4, 1, 4, "class")
    assert [one.index for one in batches] == [0, 1, 2]
    assert [list(one.pairs) for one in batches] == [
        [(1, 2), (2, 2), (3, 2), (1, 5)], [(2, 5), (3, 5), (1, 7), (2, 7)], [(3, 7)]]


def test_batches_by_class_write_the_range_and_keep_to_it(world, tmp_path):
    """No image beyond it is computed; the range is a setting; a run of one batch is that of --batch-order ipc
    but for the order in it."""
    flags = recover_flags(world, "--batch-order", "class", "--batch-size", 8, "--ipc-end", 2, name=tmp_path)
    run_main(*flags)
    rows = [json.loads(line) for line in (tmp_path / "images.metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows if "images" in row] == [8, 8, 4]
    settings = read_json(tmp_path / "images.manifest.json")["settings"]
    assert settings["ipc_range"] == [0, 2] and settings["batch_order"] == "class"
    for more in ((), ("--dry-run",)):
        assert "ipc_range" in refused(*flags, "--ipc-end", 3, *more)


def test_a_run_without_options_records_none_of_them(world, tmp_path):
    """As older runs did. One block of the data set's size is no option either."""
    flags = recover_flags(world, name=tmp_path)
    run_main(*flags)
    settings = read_json(tmp_path / "images.manifest.json")["settings"]
    assert not settings.keys() & {*plan.OPTIONS, "ipc_range"} and settings["iteration"] == 1
    run_main(*flags, "--iteration", 7, "--blocks", "1@32")


def test_blocks_are_read_and_planned():
    blocks = plan_blocks(block_list("500@200,500,1@224"), 224)
    assert [(one.first, one.stop, one.size) for one in blocks] == [
        (0, 500, 200), (500, 1000, 224), (1000, 1001, 224)]
    for text in ("", "500@", "@200", "500@200;500", "0@32", "5@7", "-5", "5@32,", "5.5"):
        with pytest.raises(argparse.ArgumentTypeError):
            block_list(text)


def test_a_stepper_keeps_a_graph_for_each_size_and_engine_until_other_batches_come(monkeypatch):
    """Two engines take turns, counted over the whole run; a graph is captured once for each and each size."""
    made = []

    class Member:
        captures, adam_step = True, staticmethod(lambda *args: None)

        def loss_and_gradient(self, images, targets, view):
            return Terms(*(torch.zeros(len(images)) for _ in TERMS)), torch.zeros_like(images)

    class Turns:
        members = Member(), Member()

        def at(self, iteration):
            return self.members[iteration % 2]

        def tabulate(self, views):
            return torch.arange(len(views))

    def make_graph():
        made.append(SimpleNamespace(replay=lambda: None, pool=lambda: "pool"))
        return made[-1]
    pools = []
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda _, pool: contextlib.nullcontext(pools.append(pool)))
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", make_graph)
    stepper = Stepper(Turns(), torch.full((3, 1, 1), -1.0), torch.full((3, 1, 1), 1.0))

    def run(groups, size, first):
        images = torch.zeros(groups, 1, 3, size, size)
        targets = torch.zeros(groups, 1, dtype=torch.int64)
        stepper.start(images, targets, [None] * 3, [0.1] * 3, first, Turns())
        for iteration in range(first, first + 3):
            stepper.step(iteration)
    for _ in range(2):
        run(2, 4, 0)
        run(2, 6, 3)
        run(2, 4, 6)
    assert len(made) == 4 and pools == [None, "pool", "pool", "pool"]
    run(1, 4, 0)
    assert len(made) == 6 and pools[4:] == [None, "pool"]


# -- what is refused, before anything is computed

def test_what_would_do_nothing_or_cannot_be_is_refused(world, tmp_path, monkeypatch):
    def refusal(*flags, ipc=2, more=()):
        return refused(*recover_flags(world, "--ipc-end", ipc, *flags, name=tmp_path / "run"), *more)
    never = lambda *args: pytest.fail("an engine is made")  # noqa: E731
    monkeypatch.setattr(plan, "make_engines", never)
    real = synthetic_folder(tmp_path / "real")
    assert "--merge needs real images" in refusal("--merge", 0.5, "--blocks", "1,1")
    assert "between blocks" in refusal("--merge", 0.5, "--init", real)
    assert "add --crop-flip" in refusal("--crop-scale", 0.5)
    assert "add --crop-flip" in refusal("--crop-curriculum", "step")
    assert "without --crop-curriculum" in refusal("--crop-flip", "--curriculum-milestone", 0.5)
    assert "stages want 32" in refusal("--blocks", "1,1@24")
    assert "--jitter 32 is more than the image size, 24" in refusal("--blocks", "1@24,1")
    assert "there is no such folder" in refusal("--init", tmp_path / "nowhere")
    few = f"--init {real}: holds 2 images a class, --ipc-end is 3: add --ipc-end 2, or pick 3"
    for more in (("--batch-size", 30), ("--batch-order", "class")):
        assert few in refusal("--init", real, *more, ipc=3)
    beyond = refusal("--init", real, "--batch-size", 30)  # the range is there, its batch is larger
    assert "has no image 2 of class 0" in beyond and "--batch-order class" in beyond
    assert "has no image 2 of class 0" in refusal("--init", real, "--ipc-start", 2, ipc=3)
    (real / "new003" / "class003_id001.jpg").write_bytes(b"no image")
    assert "class003_id001.jpg: not a readable image" in refusal("--init", real)
    (real / "new003" / "class003_id001.jpg").unlink()
    assert "class003_id001.jpg: is missing" in refusal("--init", real)
    assert "is the folder that this run writes" in refusal(
        "--init", synthetic_folder(tmp_path / "run" / "images"), more=("--overwrite",))
    for flag, value in (("--blocks", "1@7,1"), ("--merge", 1.5), ("--crop-scale", 0),
                        ("--curriculum-milestone", 2)):
        assert refusal(flag, value) == ""  # by argparse
    assert len(list((tmp_path / "run" / "images").glob("*/*"))) == 20


def test_iterations_behind_blocks_are_refused_and_those_before_them_are_of_the_launchers_table():
    """A typed flag would not win over the recipe's blocks, and nobody would see it."""
    def total(*flags):
        args = recover.get_args(["--dataset", "digits", *map(str, flags)])
        plan.check_options(args)
        return args.iteration
    assert total("--iteration", 200, "--blocks", "3@12,4") == 7
    assert total("--blocks", "3@12,4", "--iteration", 7) == 7
    assert total("--iteration", 200, "--iteration", 30) == 30
    with pytest.raises(UserError, match="--iteration 30 stands after --blocks 3@12,4, which has the "
                                        "steps; type other --blocks, or --blocks 30 --merge 0 for one"):
        total("--iteration", 200, "--blocks", "3@12,4", "--merge", 0.5, "--init", "picked", "--iteration", 30)
    assert total("--blocks", "3,4", "--merge", 0.5, "--blocks", 30, "--merge", 0) == 30


def test_a_size_that_the_teacher_cannot_take_is_refused(tmp_path):
    """convnet3 has a linear layer behind what an image of 32 pixels leaves, which one of 16 does not fill."""
    flags = (recover, "--dataset", "cifar10", "--name", tmp_path, "--arch", "convnet3", "--blocks", "1@16,1",
             "--jitter", 4)
    assert "convnet3 cannot take images of 16x16 pixels" in refused(*flags, "--dry-run")
    network = build_network("convnet3", 10, None, size=32)[0]
    torch.save(network.state_dict(), tmp_path / "net.pth")
    assert "convnet3 cannot take images of 16x16 pixels" in refused(*flags, "--teacher", tmp_path / "net.pth")


def test_a_dry_run_plans_with_a_folder_that_is_still_to_be_made(world, tmp_path, capsys):
    flags = recover_flags(world, "--init", tmp_path / "picked", "--blocks", "3@24,4", "--jitter", 4,
                          name=tmp_path / "run")
    run_main(*flags, "--dry-run")
    planned = json.loads(capsys.readouterr().out)
    assert planned["settings"]["iteration"] == 7 and planned["settings"]["blocks"] == "3@24,4@32"
    synthetic_folder(tmp_path / "picked", ipc=1)
    run_main(*flags, "--dry-run")
    assert json.loads(capsys.readouterr().out)["settings"]["init"]["num_images"] == 10
