"""The recover loop: schedule, Adam, clamp, noise, bytes, and which images share a batch."""
import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from recover import plan, recover
from recover.batches import BatchGroup, ImageBatch, draw, group_batches, plan_batches
from recover.objective import TERMS, Terms
from recover.pictures import to_pixels
from recover.recover import cosine_rates
from recover.step import Stepper
from recover.views import draw_view
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import decode, encode
from sre2l.kernels.adam import adam_step
from sre2l.run.errors import UserError
from tests.helpers import bare_checkpoint, before_call, keep_last_images, run_main
from tests.worlds import recover_flags

SPEC = dataclasses.replace(DATASETS["imagenet1k"], size=8)  # three different means and stds


class FakeEngine:
    """Gives these gradients, one an iteration, and keeps the iterates it is shown."""
    captures, adam_step = False, staticmethod(adam_step)

    def __init__(self, gradients):
        self.gradients, self.seen = iter(gradients), []

    def at(self, iteration):
        return self

    def tabulate(self, views):
        return views

    def loss_and_gradient(self, images, targets, view):
        self.seen.append(images.detach().clone())
        zero = images.new_zeros(len(images))
        return Terms(*[zero] * len(TERMS)), next(self.gradients)[None].clone()


def draw_one(seed=0, index=0, batch=2, size=SPEC.size, steps=6):
    """What recover draws for one batch -> (the batch, as a group; noise; views)."""
    group = BatchGroup((ImageBatch(index, tuple((0, label) for label in range(batch))),))
    return group, *draw(group, seed, size, [partial(draw_view, size, 2, False, True)] * steps)


def scripted(steps, shape=(2, 3, 8, 8)):
    """Gradients of all magnitudes from 1e-10 to 1, so that eps matters too."""
    g = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=g) * 10 ** (-10 * torch.rand(shape, generator=g))
            for _ in range(steps)]


def test_iterates_equal_adam_written_out_with_the_clamp():
    """m, v with betas (0.5, 0.9), bias correction, eps 1e-8 outside the root; every iterate."""
    steps, lr = 12, 0.25
    gradients = scripted(steps)
    engine = FakeEngine(gradients)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    low, high = -mean / std, (1 - mean) / std

    group, noise, views = draw_one(steps=steps)
    stepper = Stepper(engine, low.float(), high.float())
    stepper.start(noise, group.targets("cpu"), views, cosine_rates(lr, steps))
    for iteration in range(steps):
        stepper.step(iteration)

    seen = [images[0] for images in engine.seen] + [stepper.images[0]]
    assert (seen[0] < low).any() and (seen[0] > high).any()
    x, m, v = seen[0].double(), 0, 0
    for t, g in enumerate(g.double() for g in gradients):
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g ** 2
        lr_t = lr * (1 + math.cos(math.pi * t / steps)) / 2
        assert cosine_rates(lr, steps)[t] == pytest.approx(lr_t, rel=1e-12, abs=1e-15)
        x = x - lr_t * (m / (1 - 0.5 ** (t + 1))) / ((v / (1 - 0.9 ** (t + 1))).sqrt() + 1e-8)
        x = torch.minimum(torch.maximum(x, low), high)
        assert (seen[t + 1] - x).abs().max() < 2e-5


def test_noise_is_standard_normal():
    _, noise, _ = draw_one(batch=100, size=16)
    assert abs(noise.double().mean()) < 0.02 and abs(noise.double().std() - 1) < 0.02
    assert abs((noise.abs() < 1).double().mean() - 0.6827) < 0.01


def test_noise_and_views_depend_on_seed_and_batch_alone():
    _, noise, views = draw_one(3, 1)
    torch.manual_seed(99)
    np.random.seed(99)
    _, again, views_again = draw_one(3, 1)
    assert views == views_again and torch.equal(noise, again)
    for seed, index in ((3, 0), (3, 2), (1, 3), (4, 1)):
        _, other, other_views = draw_one(seed, index)
        assert not torch.allclose(noise, other, atol=0.1) and views != other_views


def test_a_group_draws_what_its_batches_draw_alone():
    draw_views = [partial(draw_view, 8, 2, False, True)] * 4
    batches = plan_batches([0, 1, 2], 4, 0, 3)
    group, = group_batches(batches, 3)
    noise, views = draw(group, 5, 8, draw_views)
    alone = [draw(BatchGroup((batch,)), 5, 8, draw_views) for batch in batches]
    assert noise.shape == (3, 4, 3, 8, 8) and noise.dtype == torch.float32
    assert torch.equal(noise, torch.cat([one for one, _ in alone]))
    assert views == [[*of_iteration[0], *of_iteration[1], *of_iteration[2]]
                     for of_iteration in zip(*(views for _, views in alone))]
    assert (group.name, BatchGroup(batches[1:2]).name) == ("unit 0-2", "unit 1")
    assert group.targets("cpu").tolist() == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]


def test_pixels_are_truncated_and_clamped():
    """floor(255 clip(x std + mean, 0, 1)) wherever fp32 rounding cannot decide."""
    x = 1.5 * torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (SPEC.mean, SPEC.std))
    grey = (255 * np.clip(x.numpy() * std + mean, 0, 1)).transpose(0, 2, 3, 1)
    sure = (np.abs(grey - np.rint(grey)) > 1e-3) | (grey == 0) | (grey == 255)
    pixels = to_pixels(x, SPEC.mean, SPEC.std)
    assert pixels.dtype == np.uint8 and pixels.shape == (4, 16, 16, 3)
    assert sure.mean() > 0.99 and (pixels == np.floor(grey))[sure].all()
    assert 0.3 < (pixels != np.rint(grey)).mean() < 0.6  # rounding would be something else
    assert {0, 255} <= set(pixels.ravel().tolist())


@pytest.mark.parametrize("size", (8, 33, 64))
def test_a_jpeg_has_pillows_default_bytes_and_a_png_loses_nothing(tmp_path, size):
    pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "pillow.jpg")
    assert encode(pixels) == (tmp_path / "pillow.jpg").read_bytes()
    (tmp_path / "ours.png").write_bytes(encode(pixels, ".png"))
    assert np.array_equal(decode(tmp_path / "ours.png"), pixels)


def expected_batches(classes, batch, ipcs):
    """The batches from ipc 0 on by the spec, section 2, as lists of (ipc, class), for `ipcs` per class."""
    if len(classes) >= batch:
        starts = range(0, len(classes), batch)
        return [[(ipc, c) for c in classes[at:at + batch]] for ipc in range(ipcs) for at in starts]
    flat = [(ipc, c) for ipc in range(ipcs + batch) for c in classes]
    return [flat[at:at + batch] for at in range(0, ipcs * len(classes), batch)]


CASES = (list(range(7)), 3), ([2, 5, 7, 8], 4), ([1, 4, 6], 5), ([9], 4), ([0, 3], 1), ([1, 2, 3], 7)


@pytest.mark.parametrize("classes, batch", (*CASES, (list(range(1000)), 100)))
def test_batches_are_composed_as_specified(classes, batch):
    batches = plan_batches(classes, batch, 0, 6)
    assert [list(one.pairs) for one in batches] == expected_batches(classes, batch, 6)
    assert [one.index for one in batches] == list(range(len(batches)))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return bare_checkpoint(tmp_path_factory.mktemp("teacher") / "net.pth", num_classes=5)


def recover_images(root, teacher, batch, start, end, *flags):
    """recover.main with two iterations -> {file name: its bytes}."""
    run_main(recover, "--dataset", "cifar10", "--num-classes", 5, "--device", "cpu", "--syn-data-path", root,
             "--teacher", teacher, "--stem", "torchvision", "--arch", "shufflenet_v2_x0_5", "--iteration", 2,
             "--batch-size", batch, "--jitter", 4, "--ipc-start", start, "--ipc-end", end, *flags)
    return {path.name: path.read_bytes() for path in (root / "images").glob("new*/*")}


@pytest.mark.parametrize("flags, suffix", (((), ".jpg"), (("--lossless",), ".png")))
def test_file_holds_the_last_iterate(tmp_path, teacher, monkeypatch, flags, suffix):
    """The bytes written encode what the loop left after its last step: two batches, the second one short."""
    lasts = keep_last_images(monkeypatch)
    files = recover_images(tmp_path, teacher, 3, 0, 1, *flags)
    spec = DATASETS["cifar10"]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.mean, spec.std))
    levels = (torch.cat(lasts) * std + mean).clamp(0, 1) * 255
    grey = levels.floor().byte().permute(0, 2, 3, 1).contiguous().numpy()
    assert [len(images) for images in lasts] == [3, 2]
    assert files == {f"class{label:03d}_id000{suffix}": encode(grey[label], suffix) for label in range(5)}
    with pytest.raises(UserError, match="lossless"):  # a folder holds one kind of files
        recover_images(tmp_path, teacher, 3, 0, 1, *(() if flags else ("--lossless",)))


@pytest.mark.parametrize("batch, classes", ((2, "0-4"), (5, "0-4"), (4, "0,1,4")))
def test_image_is_the_same_in_any_range(tmp_path, teacher, batch, classes):
    """Range 0-2 equals 1-2 and 0-1 apart: short last block, one block, batches cut by the range."""
    whole = recover_images(tmp_path / "whole", teacher, batch, 0, 2, "--classes", classes)
    second = recover_images(tmp_path / "parts", teacher, batch, 1, 2, "--classes", classes)
    first = recover_images(tmp_path / "first", teacher, batch, 0, 1, "--classes", classes)
    assert len(whole) == 2 * len(first) == 2 * len(second) == len(set(whole.values()))
    assert {**first, **second} == whole


def test_what_another_run_writes_while_the_engine_is_made_is_kept(world, tmp_path, monkeypatch, capsys):
    """The same command, given twice: the first ends before the second may begin."""
    flags = recover_flags(world, name=tmp_path / "run")
    before_call(monkeypatch, plan, "make_engines", 1, lambda: run_main(*flags))
    run_main(*flags)
    assert capsys.readouterr().out.count(" 0 left to do") == 1
