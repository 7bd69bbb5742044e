"""--keep, --label-draw and --temperature-schedule: pools as LPLD, phases as HALD, T as LPQLD."""
import argparse
import json
from collections import Counter

import pytest
import torch

from sre2l.data.augment import unit_rng
from sre2l.data.label_files import LabelFolder
from sre2l.data.loader import Batches
from tests.helpers import refused, run_main
from tests.worlds import relabel_flags, train_flags
from validate import train
from validate.draws import Pool, choose_batches, hard_range, temperature_at
from validate.losses import mix_and_targets

LABELS = LabelFolder(20, 8, 3, 10, "cutmix", "fp16", False, 0)  # 9 batches in all, of 8, 8 and 4


def parse(*flags):
    return train.get_args([str(flag) for flag in flags])


def shown(args, seed=0, first=0):
    """What choose_batches chooses, as ('stored' or 'fresh', epoch, index, rows)."""
    return [("fresh" if is_fresh else "stored", each.epoch, each.index, each.rows.tolist())
            for batches, is_fresh in choose_batches(args, LABELS, seed, first) for each in batches]


STORED = [("stored", each.epoch, each.index, each.rows.tolist()) for each in Batches(20, 8, 42, 3)]


def test_a_pool_is_drawn_with_replacement_and_never_gives_a_short_batch():
    args = parse("--label-draw", "pool", "--epochs", 400)
    found = shown(args)
    whole = [each for each in STORED if each[2] < 2]
    assert len(found) == 1200 and all(each in whole for each in found)
    counts = Counter((epoch, index) for _, epoch, index, _ in found)
    # The second batch of an epoch stands for the short third one as well.
    for epoch, index in counts:
        assert abs(counts[epoch, index] - 1200 * (1 + index) / 9) < 60
    assert shown(args, first=17) == found[3 * 17:]
    assert shown(args, seed=1) != found


def test_phases_are_soft_hard_soft_and_deal_out_the_pool_before_any_batch_comes_again():
    args = parse("--label-draw", "phases", "--epochs", 12)
    assert hard_range(args) == range(3, 9)
    found = shown(args, seed=4)
    kinds = [kind for kind, *_ in found]
    assert kinds == ["stored"] * 9 + ["fresh"] * 18 + ["stored"] * 9
    for deck in (found[:9], found[27:]):
        assert sorted(deck) == sorted(STORED)
    assert found[:9] != found[27:]
    fresh = [(epoch, index) for _, epoch, index, _ in found[9:27]]
    assert fresh == [(epoch, index) for epoch in range(3, 9) for index in range(3)]
    for first in (1, 5, 10):
        assert shown(args, seed=4, first=first) == found[3 * first:]
    assert hard_range(parse("--label-draw", "phases", "--epochs", 12, "--hard-epochs", 2)) == range(5, 7)


def test_a_deck_is_shuffled_once_an_epoch_and_not_at_each_step(monkeypatch):
    shuffled = []
    monkeypatch.setattr("validate.draws.unit_rng", lambda *unit: shuffled.append(unit) or unit_rng(*unit))
    pool = Pool(LABELS, 42)
    for count in range(4):  # three epochs of three batches are a deck
        assert len(list(pool.dealt(5, count))) == 3
    assert shuffled == [(5, 12, 0)] * 3 + [(5, 12, 1)]


def test_in_order_nothing_changes():
    assert shown(parse("--epochs", 3)) == STORED


def test_the_temperature_falls_as_published():
    step = parse("-T", 20, "--temperature-schedule", "step", "--epochs", 300)
    assert [temperature_at(step, epoch) for epoch in (0, 29, 30, 60, 299)] == pytest.approx(
        [20, 20, 14, 9.8, 20 * 0.7 ** 9])
    cosine = parse("-T", 20, "--temperature-schedule", "cosine", "--epochs", 300)
    assert [temperature_at(cosine, epoch) for epoch in (0, 150, 300)] == pytest.approx([20, 11, 2])
    assert temperature_at(parse(), 299) == 20


def test_targets_of_a_hard_phase_are_smoothed_classes(world):
    args = argparse.Namespace(hard_labels=False, label_draw="phases")
    from sre2l.data.augment import Crops, Mix
    from sre2l.data.datasets import DATASETS
    from sre2l.data.label_files import LabelBatch
    batch = LabelBatch(Crops(torch.rand(2, 4), torch.zeros(2).bool()), Mix(torch.tensor([1, 0]), 0.25))
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    classes = torch.tensor([3, 7]).numpy()
    _, targets = mix_and_targets(args, DATASETS["cifar10"], classes, pixels, batch, 20.0, "fp32")
    wanted = torch.full((2, 10), 0.08)
    wanted[0, 3] = wanted[1, 7] = 0.08 + 0.2 * 0.25
    wanted[0, 7] = wanted[1, 3] = 0.08 + 0.2 * 0.75
    assert torch.allclose(targets, wanted)


def test_a_part_of_the_epochs_is_kept_and_trains_as_many(world, tmp_path):
    labels = ("--fkd-path", tmp_path / "labels")
    run_main(*relabel_flags(world, "--epochs", 4, "-b", 8, "--keep", 0.5, *labels))
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {"epoch_0", "epoch_1"}
    flags = (*labels, "--epochs", 4, "--eval-every", 4, "--output-dir")
    assert "--label-draw pool draws from it" in refused(*train_flags(world, *flags, tmp_path / "s"))
    weights = []
    for number, draw in enumerate((("pool",), ("pool", "--temperature-schedule", "step"), ("phases",))):
        run_main(*train_flags(world, *flags, tmp_path / f"s{number}", "--label-draw", *draw))
        protocol = json.loads((tmp_path / f"s{number}" / "results.json").read_text())["protocol"]
        assert (protocol["label_draw"], protocol["labels"]["pool_epochs"]) == (draw[0], 2)
        weights.append(torch.load(tmp_path / f"s{number}" / "seed0" / "checkpoint.pth")["model"]["fc.weight"])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    # Labels of more epochs are another pool.
    run_main(*relabel_flags(world, "--epochs", 4, "-b", 8, *labels))
    assert "pool_epochs" in refused(*train_flags(world, *flags, tmp_path / "s0", "--label-draw", "pool"))


@pytest.mark.parametrize("flags, words", (
    (("--hard-epochs", 1), "--hard-epochs would do nothing"),
    (("--label-draw", "phases", "--hard-epochs", 2, "--epochs", 3), "each of the three phases needs"),
    (("--label-draw", "phases", "--epochs", 1), "each of the three phases needs"),
    (("--temperature-schedule", "step", "--hard-labels"), "has no temperature"),
    (("--temperature-schedule", "step", "--loss", "mse"), "has no temperature"),
    (("--temperature-schedule", "cosine", "-T", 1), "-T 1 is not above that")))
def test_flags_that_contradict_each_other(world, flags, words):
    assert words in refused(*train_flags(world, *flags))


def test_the_pool_knows_its_batches_by_number():
    pool = Pool(LABELS, 42)
    found = map(pool.__getitem__, range(9))
    assert [("stored", each.epoch, each.index, each.rows.tolist()) for each in found] == STORED
