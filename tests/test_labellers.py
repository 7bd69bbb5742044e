"""Labels by several teachers, and by BatchNorm's statistics over parts of a batch, against float64."""
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from relabel import relabel, teacher_form
from sre2l.check.verify import read_synthetic
from sre2l.data.datasets import DATASETS
from sre2l.data.derived import derived_of
from sre2l.data.label_files import read_label_batch
from sre2l.data.loader import BatchDataset, Batches
from sre2l.nets.teacher import load_teacher
from sre2l.run.files import read_json
from tests.fp64 import show_batch64
from tests.helpers import bare_checkpoint, refused, run_main, synthetic_folder
from tests.test_continue import files_of
from tests.test_interrupts import handlers, interrupted  # noqa: F401 (handlers: a fixture)
from tests.test_processes import run
from tests.test_teachers import save_teacher
from tests.worlds import common
from validate.checks import describe_labels, describe_part

SPEC = DATASETS["cifar10"]
ARCHS = {"a": "mobilenet_v2-32", "b": "convnet2-w8", "c": "squeezenet1_1"}
OTHER = {"mean": (0.1, 0.2, 0.3), "std": (0.2, 0.4, 0.8)}
# The rows of a part of three in batches of 8, 8 and 4: the last row of the last batch is not left alone.
PARTS = {8: ((0, 3), (3, 6), (6, 8)), 4: ((0, 4),)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """20 images and three teachers; b has a normalisation of its own, c no BatchNorm."""
    root = tmp_path_factory.mktemp("labellers")
    synthetic_folder(root / "run" / "images")
    facts = {"dataset": "cifar10", "mean": SPEC.mean, "std": SPEC.std}
    save_teacher(root / "a.pth", "mobilenet_v2-32", **facts)
    save_teacher(root / "b.pth", "convnet2-w8", **{**facts, **OTHER})
    bare_checkpoint(root / "c.pth", "squeezenet1_1")
    return root


def flags_of(root, name, teachers, *flags):
    """Two epochs of batches of 8, 8 and 4. teachers: such as 'ab'."""
    files = ",".join(str(root / f"{letter}.pth") for letter in teachers)
    archs = ",".join(ARCHS[letter] for letter in teachers)
    return (relabel, *common(root), "--teacher", files, "--arch", archs, "--stem", "torchvision", "-j", 0,
            "--epochs", 2, "-b", 8, "--label-precision", "fp32", "--fkd-path", root / name, *flags)


def manifest(root, name):
    return read_json(root / f"{name}.manifest.json")["settings"]


def network64(root, letter, train=False):
    """A teacher in float64, as torch computes it. train: its BatchNorm in train mode, its dropout off."""
    network = load_teacher(SPEC, root / f"{letter}.pth", ARCHS[letter], "torchvision").network.double()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train(train)
    return network


def replay(root, name):
    """Yield (pixels, what is stored) of each batch of a label folder."""
    def stored_labels(batch, _):
        return read_label_batch(root / name, batch.epoch, batch.index)
    images = read_synthetic(root / "run" / "images", 10)
    dataset = BatchDataset(images, 32, stored_labels, derived_of(manifest(root, name)))
    for batch in Batches(20, 8, 42, 2):
        _, pixels, stored = dataset[batch]
        yield pixels, stored


def assert_close(found, wanted):
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_statistics_are_those_of_each_part(root):
    """Of three images at a time, or four; dropout is off; the same files whatever was labelled before."""
    run_main(*flags_of(root, "parts", "a", "--batch-statistics", 3))
    network = network64(root, "a", train=True)
    whole = network64(root, "a", train=True)
    for pixels, stored in replay(root, "parts"):
        images = show_batch64(pixels, stored.mix, SPEC.mean, SPEC.std, None)
        wanted = torch.cat([network(images[start:stop]) for start, stop in PARTS[len(images)]])
        assert_close(stored.logits, wanted)
        if len(images) == 8:
            assert (whole(images) - wanted).norm() > 0.01 * wanted.norm()
    settings = manifest(root, "parts")
    assert settings["batch_statistics"] == 3 and "teachers" not in settings
    assert describe_labels(None, None, settings, None)["batch_statistics"] == 3
    before = files_of(root / "parts")
    (root / "parts" / "epoch_1" / "batch_1.tar").unlink()
    run_main(*flags_of(root, "parts", "a", "--batch-statistics", 3))
    assert files_of(root / "parts") == before
    assert "batch_statistics" in refused(*flags_of(root, "parts", "a", "--batch-statistics"))


@pytest.mark.parametrize("weights", ((), (3, 1)))
def test_logits_are_the_weighted_mean_of_each_teachers_on_its_own_normalisation(root, weights):
    name = f"mean{len(weights)}"
    given = ("--teacher-weights", ",".join(map(str, weights))) if weights else ()
    run_main(*flags_of(root, name, "ab", *given))
    a, b = (network64(root, letter) for letter in "ab")
    share = 0.75 if weights else 0.5
    for pixels, stored in replay(root, name):
        of_a = a(show_batch64(pixels, stored.mix, SPEC.mean, SPEC.std, None))
        of_b = b(show_batch64(pixels, stored.mix, OTHER["mean"], OTHER["std"], None))
        assert_close(stored.logits, share * of_a + (1 - share) * of_b)
        assert (of_a - of_b).norm() > 0.1 * of_a.norm()
    settings = manifest(root, name)
    assert settings["teacher_weights"] == list(weights or (1, 1)) and settings["precision"] == "fp32"
    assert [one["arch"] for one in settings["teachers"]] == ["mobilenet_v2-32", "convnet2-w8"]
    assert settings["teacher"] == settings["teachers"][0]
    facts = describe_labels(None, None, settings, None)
    assert (facts["teachers"], facts["teacher_weights"]) == (settings["teachers"], list(weights or (1, 1)))
    log = (root / f"{name}.log.txt").read_text()
    assert "mobilenet_v2-32: fp32, " in log and "convnet2-w8: fp32, " in log
    assert "teachers" in refused(*flags_of(root, name, "a"))
    assert "teachers" in refused(*flags_of(root, name, "ba", *given))


def test_of_several_teachers_one_without_batchnorm_labels_in_eval_mode(root):
    run_main(*flags_of(root, "without", "bc", "--batch-statistics", 3))
    b, c = network64(root, "b", train=True), network64(root, "c")
    for pixels, stored in replay(root, "without"):
        images = show_batch64(pixels, stored.mix, OTHER["mean"], OTHER["std"], None)  # the first one's
        of_b = torch.cat([b(images[start:stop]) for start, stop in PARTS[len(images)]])
        of_c = c(show_batch64(pixels, stored.mix, SPEC.mean, SPEC.std, None))
        assert_close(stored.logits, (of_b + of_c) / 2)
    log = (root / "without.log.txt").read_text()
    assert "no BatchNorm in squeezenet1_1, which labels in eval mode" in log
    assert "squeezenet1_1, squeezenet1_1 have no BatchNorm layer" in refused(
        *flags_of(root, "none", "cc", "--batch-statistics"))
    assert not (root / "none").exists()


def test_two_processes_and_a_run_that_was_stopped_write_what_one_writes(root, monkeypatch):
    options = ("--batch-statistics", 4, "--augment", "randaugment", "--patch-shuffle", 2, "--teacher-weights",
               "1,2")
    whole, cut, both = (flags_of(root, name, "ab", *options) for name in ("whole", "cut", "both"))
    run_main(*whole)
    interrupted(monkeypatch, relabel, "mean_logits", 3, cut)
    assert 0 < len(files_of(root / "cut")) < 6
    run_main(*cut)
    result = run("relabel.relabel", *both[1:], processes=2)
    assert result.returncode == 0, result.stderr
    for name in ("cut", "both"):
        assert files_of(root / name) == files_of(root / "whole")
        assert (root / f"{name}.sha256").read_bytes() == (root / "whole.sha256").read_bytes()
        settings, wanted = ({**manifest(root, one), "versions": None} for one in (name, "whole"))
        assert settings == wanted


def test_each_teacher_has_its_own_precision_and_keeps_it(root, monkeypatch):
    """As on a GPU, where one may be too far from fp32 in half precision and another may not."""
    run_main(*flags_of(root, "half", "ab", "--precision", "bf16"))
    settings = manifest(root, "half")
    assert settings["precision"] == "bf16"
    assert [form["kl_t20"] < 1e-5 for form in settings["half_against_fp32"]] == [True, True]

    asked = []

    def prepare(network, item, spec, requested, recorded, *_):
        asked.append(recorded)
        choice = ("fp32", "bf16")[len(asked) % 2]
        return network.to(torch.bfloat16 if choice == "bf16" else torch.float32), choice, {"form": choice}
    monkeypatch.setattr(teacher_form, "prepare_teacher", prepare)
    teachers = [SimpleNamespace(network=nn.Linear(1, 1)) for _ in range(2)]
    labellers = teacher_form.prepare_teachers(teachers, [1, 3], None, SPEC, None, None, None)
    assert [labeller.share for labeller in labellers] == [0.25, 0.75]
    assert teacher_form.describe_precisions(labellers) == "bf16,fp32"
    teacher_form.prepare_teachers(teachers, [1, 3], None, SPEC, None, "bf16,fp32", None)
    teacher_form.prepare_teachers(teachers, [1, 3], None, SPEC, None, "bf16", None)
    assert asked == [None, None, "bf16", "fp32", "bf16", "bf16"]


@pytest.mark.parametrize("dry", ((), ("--dry-run",)))
def test_what_cannot_be_is_refused(root, dry):
    def message(teachers, *flags):
        return refused(*flags_of(root, "refused", teachers, *flags, *dry))
    assert "--batch-statistics 9 is above --batch-size 8" in message("a", "--batch-statistics", 9)
    assert message("a", "--batch-statistics", 1) == ""  # argparse: at least 2
    assert "a batch of one" in message("a", "--batch-statistics", 2, "-b", 19)
    for teachers, weights, words in (("ab", "1", "1 numbers for 2 teachers"),
                                     ("a", "1,2", "2 numbers for 1 teacher;")):
        assert f"--teacher-weights has {words}" in message(teachers, "--teacher-weights", weights)
    assert message("ab", "--teacher-weights", "1,0") == ""  # argparse: above 0
    assert not (root / "refused").exists()


@pytest.mark.parametrize("part, steps, warns", ((None, 2, False), (True, 1, False), (False, 2, False),
                                                (8, 2, False), (8, 1, True), (3, 2, True), (True, 2, True)))
def test_parts_that_are_not_the_students_micro_batches_are_warned_of(part, steps, warns):
    args = SimpleNamespace(gradient_accumulation_steps=steps, fkd_path="labels")
    text = describe_part(args, SimpleNamespace(batch_size=16), {"batch_statistics": part})
    assert bool(text) == warns
    if warns:
        seen = 16 if part is True else part
        assert f"saw {seen} images at a time, the student's sees {16 // steps}" in text
    assert describe_part(args, SimpleNamespace(batch_size=16), None) is None
