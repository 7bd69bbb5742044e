"""Crops, flips, mixes, normalisation: pixel for pixel torchvision's and the formulas of spec section 4."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as t_F

from relabel import relabel, teacher_form
from sre2l.data.augment import (
    Mix,
    apply_mix,
    draw_crops,
    draw_cutmix_box,
    draw_mix,
    normalise,
)
from sre2l.data.datasets import DATASETS
from sre2l.data.resize import apply_crops, pixel_windows
from tests.helpers import SMALL, bare_checkpoint, run_main
from validate import train

SIZES = ((32, 32), (64, 64), (47, 90), (131, 57), (224, 224), (299, 299), (298, 225))


def noise_images(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in sizes]


def by_torchvision(image, box, flip, size):
    """Round the box, crop (black outside), resize, flip, as torchvision does -> (3, size, size) uint8."""
    height, width = image.shape[:2]
    top, left, h, w = (round(float(part) * side) for part, side in zip(box, (height, width, height, width)))
    view = t_F.resized_crop(t_F.to_pil_image(image), top, left, h, w, [size, size],
                            transforms.InterpolationMode.BILINEAR)
    return t_F.pil_to_tensor(t_F.hflip(view) if flip else view)


@pytest.mark.parametrize("size", (32, 64, 224))
def test_resized_crops_equal_torchvisions_in_every_pixel(size):
    images = noise_images(SIZES * 4)
    crops = draw_crops([image.shape[:2] for image in images], "resized", (0.08, 1), 0, True,
                       np.random.default_rng(size))
    ours = apply_crops(images, crops, size)
    assert ours.shape == (len(images), 3, size, size) and ours.dtype == torch.uint8
    for image, box, flip, view in zip(images, crops.boxes, crops.flips, ours):
        assert torch.equal(view, by_torchvision(image, box, flip, size))
    assert 0 < crops.flips.sum() < len(images)


@pytest.mark.parametrize("size", (32, 45))
def test_padded_crops_are_shifts_with_black_outside(size):
    """(t/H, l/W, 1, 1): pixel (i, j) is the image's (i + t, j + l), black where there is none."""
    images = noise_images([(size, size)] * 40)
    padding = 4
    crops = draw_crops([(size, size)] * 40, "padded", (0.08, 1), padding, True, np.random.default_rng(0))
    for image, box, flip, view in zip(images, crops.boxes, crops.flips, apply_crops(images, crops, size)):
        top = round(box[0].item() * size)
        left = round(box[1].item() * size)
        framed = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        wanted = framed[padding + top:padding + top + size, padding + left:padding + left + size]
        assert np.array_equal(view.permute(1, 2, 0).numpy(), wanted[:, ::-1] if flip else wanted)
        assert torch.equal(view, by_torchvision(image, box, flip, size))


def test_padded_crops_take_every_shift_up_to_the_padding_and_half_are_flipped():
    crops = draw_crops([(32, 48)] * 4000, "padded", (0.08, 1), 4, True, np.random.default_rng(0))
    shifts = {(round(top * 32), round(left * 48)) for top, left in crops.boxes[:, :2].tolist()}
    assert shifts == {(top, left) for top in range(-4, 5) for left in range(-4, 5)}
    assert (crops.boxes[:, 2:] == 1).all() and 0.46 < crops.flips.double().mean() < 0.54


def test_pixel_windows_take_rows_by_height_and_columns_by_width():
    boxes = torch.tensor([[5 / 33, 7 / 91, 20 / 33, 60 / 91], [0, 0, 1e-4, 1e-4]])
    # never empty
    assert pixel_windows(boxes, np.array([[33, 91], [33, 91]])).tolist() == [[5, 7, 20, 60], [0, 0, 1, 1]]


@pytest.mark.parametrize("dataset", DATASETS)
def test_normalise_equals_torchvision_bit_for_bit(dataset):
    """All 256 grey levels in all channels, ToTensor + Normalize."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    spec = DATASETS[dataset]
    steps = [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
    theirs = transforms.Compose(steps)(Image.fromarray(levels))
    ours = normalise(torch.from_numpy(levels).permute(2, 0, 1)[None], spec.mean, spec.std)
    assert ours.dtype == torch.float32 and torch.equal(ours[0], theirs)


@pytest.mark.parametrize("box", ([2, 3, 7, 8], [0, 0, 8, 8], [4, 4, 4, 6], [0, 7, 1, 8]))
def test_cutmix_takes_the_box_from_the_unmixed_partner(box):
    x = torch.randn(5, 3, 8, 8)
    partner = torch.tensor([1, 2, 3, 4, 0])
    before = x.clone()
    mixed = apply_mix(x, Mix(partner, 0.4, box))
    for row in range(5):
        for i in range(8):
            for j in range(8):
                source = partner[row] if box[0] <= i < box[2] and box[1] <= j < box[3] else row
                assert torch.equal(mixed[row, :, i, j], before[source, :, i, j])
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", (32, 33, 224))
@pytest.mark.parametrize("lam", (0.0, 0.01, 0.37, 0.5, 0.9, 0.9999, 1.0))
def test_cutmix_box_is_a_clipped_square_around_a_uniform_centre(size, lam):
    """h = int(S sqrt(1 - lam)) // 2; rows clip(r - h)..clip(r + h), r uniform in 0..S-1, columns likewise."""
    half = int(size * (1 - lam) ** 0.5) // 2
    rng = np.random.default_rng(size)
    spans = [(max(r - half, 0), min(r + half, size)) for r in range(size)]
    boxes = [draw_cutmix_box(size, lam, rng) for _ in range(12 * size)]
    assert all(type(v) is int for box in boxes for v in box)
    for axis in (0, 1):
        drawn = [(box[axis], box[axis + 2]) for box in boxes]
        assert set(drawn) <= set(spans)
        assert len(set(drawn)) > 0.98 * len(set(spans))
    assert {box[0] == box[1] for box in boxes} == {True, False}  # rows and columns independent


@pytest.mark.parametrize("kind, alpha", (("mixup", 0.8), ("cutmix", 1.0)))
def test_mix_draws_a_permutation_and_a_beta_lam(kind, alpha):
    rng = np.random.default_rng(0)
    mixes = [draw_mix(kind, alpha, 7, 32, rng) for _ in range(3000)]
    assert all(sorted(mix.partner.tolist()) == list(range(7)) and mix.kind == kind for mix in mixes)
    lams = np.array([mix.lam for mix in mixes])
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
    assert abs(lams.mean() - 0.5) < 0.03 and abs(lams.var() - variance) < 0.01
    assert len({tuple(mix.partner.tolist()) for mix in mixes}) > 1500


class Recorder:
    """Keeps what the networks of the smallest architecture are shown: each input with the mode."""

    def __init__(self, monkeypatch):
        self.seen = []
        kind = torchvision.models.ShuffleNetV2
        forward = kind.forward

        def recording(network, x):
            self.seen.append(SimpleNamespace(images=x.detach().clone(), training=network.training))
            return forward(network, x)
        monkeypatch.setattr(kind, "forward", recording)

    def take(self, training):
        """The batches seen in this mode since the last call, without the blank image of the size check."""
        chosen = [entry for entry in self.seen if entry.training == training and len(entry.images) > 1]
        self.seen = []
        return [entry.images for entry in chosen]


def stored_images(root, sizes, num_classes=4):
    """Noise as JPEGs in recover's layout, image i of a class of sizes[i] -> root."""
    for label in range(num_classes):
        (root / f"new{label:03d}").mkdir(parents=True)
        for i, image in enumerate(noise_images(sizes, seed=label)):
            Image.fromarray(image).save(root / f"new{label:03d}" / f"class{label:03d}_id{i:03d}.jpg")
    return root


@pytest.mark.parametrize("crop, sizes, views", (
    ("resized", [(48, 40), (32, 32), (61, 99), (36, 70)], ()),
    ("padded", [(32, 32)] * 4, ()),
    ("resized", [(48, 42)] * 4, ("--augment", "randaugment", "--patch-shuffle", 3))))
@pytest.mark.parametrize("mix", ("cutmix", "mixup", "none"))
def test_student_sees_the_pixels_the_teacher_saw(tmp_path, monkeypatch, mix, crop, sizes, views):
    """Both stages as users run them; batches of 6, 6 and 4, each in two micro-batches; bit for bit."""
    images = stored_images(tmp_path / "images", sizes)
    labels = tmp_path / "labels"
    recorder = Recorder(monkeypatch)
    # one rewritten by torch.fx never calls forward
    monkeypatch.setattr(teacher_form, "prepare_teacher", lambda network, *_: (network, "fp32", None))
    common = ("--dataset", "cifar10", "--num-classes", 4, "--stem", "torchvision", "--device", "cpu",
              "--fkd-path", labels, "--mix-type", mix, "-j", 0)
    run_main(relabel, *common, "--teacher", bare_checkpoint(tmp_path / "net.pth", num_classes=4), "--arch",
             SMALL, "--data", images,
             "--epochs", 3, "--batch-size", 6, "--crop", crop, *views)
    teacher = recorder.take(training=False)
    run_main(train, *common, "--model", SMALL, "--train-dir", images, "--val-dir", images, "--output-dir",
             tmp_path / "student", "--epochs", 3)
    student = iter(recorder.take(training=True))
    assert [len(batch) for batch in teacher] == [6, 6, 4] * 3
    for batch in teacher:
        parts = [next(student)]
        while sum(map(len, parts)) < len(batch):
            parts.append(next(student))
        assert torch.equal(torch.cat(parts), batch)
    assert next(student, None) is None
    # every batch of every epoch has crops of its own
    assert len({batch[0].sum().item() for batch in teacher}) == 9
