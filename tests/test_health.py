"""What recover warns of: a CE that never falls, a BN term that dwarfs it; and what it does not warn of."""
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from recover import health
from recover.batches import BatchGroup, ImageBatch, draw
from recover.engines import make_fast_engine
from recover.objective import Weights
from recover.recover import cosine_rates
from recover.step import Stepper
from recover.views import draw_view
from sre2l.data.augment import normalise
from sre2l.data.datasets import DATASETS
from sre2l.data.real_images import read_real
from tests.helpers import bare_checkpoint, run_main
from tests.nets import SmallNet
from tests.worlds import recover_flags

# Iteration, CE and BN of two runs: the demo at r_bn 0.3, and CIFAR-10 at r_bn 0.01 with a weak teacher.
DIGITS = [(0, 13.98, 1306.0), (20, 5.2, 184.3), (40, 3.72, 158.7), (60, 2.73, 179.9), (80, 2.47, 109.5),
          (100, 1.44, 85.2), (120, 2.27, 126.3), (140, 1.21, 58.1), (160, 1.1, 52.4), (180, 1.86, 93.9),
          (199, 1.58, 55.4)]
CIFAR10 = [(0, 3.06, 40958.9), (10, 1.96, 5942.5), (20, 1.64, 6202.1), (30, 1.46, 4115.1), (40, 1.23, 7665.5),
           (50, 1.2, 4270.5), (60, 1.12, 2457.7), (70, 1.15, 2829.4), (80, 1.12, 1079.5), (90, 1.11, 1541.7),
           (99, 1.15, 1108.3)]


def warned(lines, total, r_bn, num_classes=10):
    """All warnings of a batch as its log grows -> ({kind: [iterations at which it came]}, last sentences)."""
    found, sentences = {}, {}
    for count in range(1, len(lines) + 1):
        for kind, sentence in health.find_warnings(*zip(*lines[:count]), total, r_bn, num_classes).items():
            found.setdefault(kind, []).append(lines[count - 1][0])
            sentences[kind] = sentence
    return found, sentences


def curve(ce, bn, total=1000, count=21):
    """`count` log lines of exponential curves, (first, last) each."""
    def between(ends, share):
        return ends[0] * (ends[1] / ends[0]) ** share
    places = range(count)
    iterations = [min(total - 1, total * i // (count - 1)) for i in places]
    shares = [i / (count - 1) for i in places]
    return [(at, between(ce, share), between(bn, share)) for at, share in zip(iterations, shares)]


WORKING = {
    "digits": (DIGITS, 200, 0.3, 10),
    "CIFAR-10": (CIFAR10, 100, 0.01, 10),
    "ImageNet, ResNet-18": (curve((8, 0.01), (150, 40), 4000), 4000, 0.01, 1000),
    "ImageNet, ResNet-50": (curve((8, 0.01), (2e4, 8e3), 4000), 4000, 0.01, 1000),
    "Tiny-ImageNet": (curve((6, 0.5), (150, 90), 4000), 4000, 1.0, 200),
    "CIFAR-100": (curve((5, 1), (4e4, 1e3)), 1000, 0.01, 100),
    "MobileNetV2": (curve((7.3, 1.4), (286, 230), 4000), 4000, 1.0, 1000),
}


@pytest.mark.parametrize("lines, total, r_bn, num_classes", WORKING.values(), ids=WORKING)
def test_published_settings_that_work_are_not_warned_of(lines, total, r_bn, num_classes):
    """The numbers of two runs, and the magnitudes that are known of others."""
    assert warned(lines, total, r_bn, num_classes) == ({}, {})


def test_a_ce_that_never_falls_is_warned_of_once_at_the_end():
    found, sentences = warned(curve((9.0, 7.5), (100, 20)), 1000, 0.01)
    assert found == {"ce": [999]} and sentences["ce"].startswith("CE never fell: 9.00 in iteration 0")
    assert "normalisation (--mean, --std)" in sentences["ce"]
    found, sentences = warned(curve((9.0, 7.5), (2.4e4, 1e4)), 1000, 0.01)
    assert found == {"ce": [999]}
    assert "--r-bn is too large for this architecture, 0.0002 would" in sentences["ce"]
    assert warned(curve((9.0, 6.9), (100, 20)), 1000, 0.01)[0] == {}       # it has fallen
    assert warned(curve((1.1, 1.0), (100, 20)), 1000, 0.01)[0] == {}       # it is small: ln(10) is 2.3
    assert warned(curve((9.0, 9.0), (100, 20), 99), 99, 0.01)[0] == {}     # a trial
    assert warned(curve((9.0, 9.0), (100, 20), count=6), 1000, 0.01)[0] == {}


def test_a_run_that_was_continued_is_measured_by_the_ce_of_a_guess():
    later = [line for line in curve((9.0, 0.02), (100, 20)) if line[0] > 600]
    assert warned([(at, 0.02, bn) for at, _, bn in later], 1000, 0.01)[0] == {}  # flat: it had fallen before
    assert warned([(at, 2.2, bn) for at, _, bn in later], 1000, 0.01)[0] == {"ce": [999]}


def test_a_bn_term_that_dwarfs_ce_is_warned_of_once_in_the_middle():
    found, sentences = warned(curve((9.0, 0.5), (1e6, 1e4)), 1000, 0.01)   # 1000 in the middle
    assert found == {"bn": [500]}
    assert sentences["bn"] == ("r_bn * BN dwarfs CE, 434 times ln(classes) in iteration 500: --r-bn is too "
                               "large for this architecture, 2e-05 would make the two comparable")
    found, sentences = warned(curve((9.0, 0.5), (1e5, 9e4)), 1000, 0.01)
    assert found == {"bn": [500]}
    assert "BN hardly falls, 1e+05 to 9.487e+04, so that the normalisation" in sentences["bn"]
    assert warned(curve((9.0, 0.5), (2e6, 2e2)), 1000, 0.01)[0] == {}      # only at the start


def test_batches_computed_together_are_warned_of_in_one_sentence():
    good = curve((9.0, 0.5), (100, 20))
    bad = curve((9.0, 9.0), (100, 20))
    lines = [(at, [a, b, b], [bn] * 3) for (at, a, bn), (_, b, _) in zip(good, bad)]
    sentence, = health.find_all_warnings(lines, ["unit 3", "unit 4", "unit 5"], 1000, 0.01, 10)
    assert sentence.startswith("warning: unit 4 (and 1 more of the 3 units computed with it): CE never fell")


@pytest.fixture(scope="module")
def digits():
    """Five classes of the digits, uint8, and their labels."""
    images = read_real(DATASETS["digits"], None, "train")
    rows = np.flatnonzero(images.labels < 5)
    pixels = torch.from_numpy(np.stack([images.pixels(row) for row in rows]))
    return pixels.permute(0, 3, 1, 2), torch.from_numpy(images.labels[rows])


def trained(images, labels):
    """SmallNet after 60 steps on images as they are."""
    torch.manual_seed(0)
    network = SmallNet(head_norm=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        rows = torch.randint(len(images), (100,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def recovered(network, r_bn, targets=range(5), steps=100):
    """The warnings of one batch, an image of each class, in the clamp of the digits' normalisation."""
    spec = DATASETS["digits"]
    edges = [[(edge - m) / s for m, s in zip(spec.mean, spec.std)] for edge in (0, 1)]
    engine = make_fast_engine(network, Weights(r_bn, 10.0, 0.0, 0.0), 32)
    stepper = Stepper(engine, *(torch.tensor(edge).view(3, 1, 1) for edge in edges))
    group = BatchGroup((ImageBatch(0, tuple((0, label) for label in targets)),))
    noise, views = draw(group, 0, 32, [partial(draw_view, 32, 4, True, False)] * steps)
    lines, found = [], {}
    stepper.start(noise, group.targets("cpu"), views, cosine_rates(0.25, steps))
    for iteration in range(steps):
        terms = stepper.step(iteration)
        if iteration % 5 == 0 or iteration == steps - 1:
            lines.append((iteration, terms.ce.item(), terms.bn.item()))
            found.update(health.find_warnings(*zip(*lines), steps, r_bn, 5))
    return found


def test_a_small_run_is_warned_of_another_normalisation_and_of_a_large_r_bn(digits):
    """Of a wrong class order recover can know nothing, since it reaches every class: relabel finds it."""
    pixels, labels = digits
    spec = DATASETS["digits"]
    network = trained(normalise(pixels, torch.tensor(spec.mean), torch.tensor(spec.std)), labels)
    assert recovered(network, 0.1) == {} == recovered(network, 0.1, targets=(4, 3, 2, 1, 0))
    of_levels = trained(pixels.float(), labels)  # a teacher of levels 0 to 255
    for warnings, words in ((recovered(network, 100), "--r-bn is too large for this architecture"),
                            (recovered(of_levels, 0.1), "(--mean, --std) is probably not the teacher's")):
        assert set(warnings) == {"ce", "bn"} and all(words in sentence for sentence in warnings.values())


def test_recover_writes_its_warnings_into_the_log_and_on_the_screen(tmp_path, capsys):
    bare_checkpoint(tmp_path / "teacher.pth")
    run_main(*recover_flags(tmp_path, "--iteration", 100, "--batch-size", 2, "--classes", "0,1",
                            "--print-period", 10, "--r-bn", 1))
    lines = (tmp_path / "new" / "images.log.txt").read_text().splitlines()
    log = [line for line in lines if line.startswith("warning")]
    assert [line[:26] for line in log] == ["warning: unit 0: r_bn * BN", "warning: unit 0: CE never "]
    shown = capsys.readouterr().out
    assert all(line in shown for line in log)
