"""LRS and ARS: the formulas, the labels of whole images, and a tiny run that makes what is missing."""
import json
import math
import statistics

import numpy as np
import pytest
import torch

from relabel import relabel
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import read_folder
from sre2l.data.label_files import read_label_batch
from sre2l.data.loader import Batches
from sre2l.nets.teacher import load_teacher
from sre2l.run.errors import UserError
from sre2l.run.files import write_json
from sre2l.run.output import write_record
from tests.helpers import bare_checkpoint, noise_folder, refused, run_main, synthetic_folder
from tests.worlds import NAMES
from validate import score, train

ARCH = "convnet3-w8"
STUDENT = f"student_{ARCH}"
PLACES = {"syn_any": STUDENT, "rnd_any": f"random_real/{STUDENT}", "syn_plain": f"score/{STUDENT}",
          "rnd_plain": f"score/{STUDENT}_random", "syn_hard": f"score/{STUDENT}_hard"}


@pytest.mark.parametrize("difference, wanted", [(1, 1), (-1, 0), (0, 0.2689414)])
def test_a_difference_of_accuracies_becomes_a_score_from_0_to_1(difference, wanted):
    """The last one is 1 / (1 + e)."""
    assert score.rescaled(difference) == pytest.approx(wanted)


def test_the_scores_are_those_of_dd_ranking():
    """A set like random real images that loses 60 points with hard labels has an LRS of 0.159."""
    known = {"syn_any": 0.4, "rnd_any": 0.4, "real_hard": 0.9, "syn_hard": 0.3, "syn_plain": 0.2,
             "rnd_plain": 0.2}
    assert score.scores_of(known) == pytest.approx({"LRS": 0.1587, "ARS": 0.2689}, abs=1e-4)

    rng = np.random.default_rng(0)
    drawn = dict(zip(known, rng.random(6)))
    alpha = (drawn["syn_any"] - drawn["rnd_any"] - drawn["real_hard"] + drawn["syn_hard"]) / 2
    beta = (drawn["syn_any"] - drawn["rnd_any"] + drawn["syn_plain"] - drawn["rnd_plain"]) / 2
    wanted = [(math.exp(x + 1) - 1) / (math.exp(2) - 1) for x in (alpha, beta)]
    assert list(score.scores_of(drawn).values()) == pytest.approx(wanted)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """20 images of noise, labels for two epochs, and a student of one seed -> the folder of all."""
    root = tmp_path_factory.mktemp("score")
    noise_folder(root / "real" / "train", NAMES, 3)
    noise_folder(root / "real" / "val", NAMES, 2, seed=1)
    bare_checkpoint(root / "t.pth", ARCH)
    synthetic_folder(root / "run" / "images")
    common = ("--dataset", "cifar10", "--name", root / "run", "--device", "cpu", "-j", 0)
    run_main(relabel, *common, "--teacher", root / "t.pth", "--arch", ARCH, "--epochs", 2, "-b", 8)
    run_main(train, *common, "--val-dir", root / "real", "--model", ARCH, "--epochs", 2, "--eval-every", 1,
             "--gradient-accumulation-steps", 1)
    return root


def flags_of(world, *more):
    return (score, "--dataset", "cifar10", "--name", world / "run", "--model", ARCH, "--real-data",
            world / "real", "--real-hard", 60, "--seeds", "0-1", *more)


def results_of(world):
    return {name: json.loads((world / "run" / place / "results.json").read_text())
            for name, place in PLACES.items()}


def test_the_plan_says_what_is_missing_and_makes_nothing(world, capsys):
    run_main(*flags_of(world, "--dry-run"))
    plan = json.loads(capsys.readouterr().out)
    wanted = {str(world / "run" / place): [0, 1] for place in PLACES.values()}
    assert plan["trains"] == wanted | {str(world / "run" / STUDENT): [1]}
    assert plan["epochs"] == 2 * 9 and not (world / "run" / "score").exists()


@pytest.fixture(scope="module")
def scored(world):
    run_main(*flags_of(world))
    return world


def test_score_trains_what_is_missing_by_the_protocol_of_the_run(scored):
    """Only what an arm is about differs: labels, loss, hard labels. Images and their labels are the arm's."""
    results = results_of(scored)
    protocols = {name: found["protocol"] for name, found in results.items()}
    own = protocols["syn_any"]
    for name, protocol in protocols.items():
        assert set(results[name]["seeds"]) == {"0", "1"}
        assert protocol["hard_labels"] == (name == "syn_hard")
        assert {key for key in own if own[key] != protocol[key]} <= {*score.OWN}
        labels = protocol["labels"]
        if name not in ("syn_any", "rnd_any"):
            assert labels["mix"] == "none"
            assert (labels["crop"]["kind"], labels["crop"]["flip"]) == ("none", False)
        is_of_run = labels["images_sha256"] == own["labels"]["images_sha256"]
        assert is_of_run == name.startswith("syn") and labels["num_images"] == 20


def test_labels_of_whole_images_are_the_teachers_answers_to_them(scored):
    """No window, no flip, no mix: of every image in every epoch the same logits, as fp16."""
    spec = DATASETS["cifar10"]
    images = read_folder(scored / "run" / "images")
    network = load_teacher(spec, scored / "t.pth", ARCH).network.double()
    pixels = np.stack([images.pixels(row) for row in range(20)]) / 255
    wanted = network(torch.from_numpy(((pixels - spec.mean) / spec.std).transpose(0, 3, 1, 2)))
    for batch in Batches(20, 8, 42, 2):
        found = read_label_batch(scored / "run" / "score" / "labels", batch.epoch, batch.index)
        assert found.mix.kind == "none" and not found.crops.flips.any()
        assert (found.crops.boxes == torch.tensor([0.0, 0, 1, 1])).all()
        assert torch.allclose(found.logits.double(), wanted[batch.rows], atol=2e-3)


def test_score_json_has_every_accuracy_and_both_scores(scored, capsys):
    """By the formulas from results.json, per seed and then the mean; asked again, nothing is trained."""
    stamps = {path: path.stat().st_mtime_ns for path in (scored / "run").rglob("results.json")}
    run_main(*flags_of(scored))
    assert stamps == {path: path.stat().st_mtime_ns for path in (scored / "run").rglob("results.json")}
    found = json.loads((scored / "run" / "score.json").read_text())
    results = results_of(scored)

    def lrs(seed, key):
        top1 = {name: values["seeds"][seed][key] / 100 for name, values in results.items()}
        alpha = 0.5 * (top1["syn_any"] - top1["rnd_any"]) - 0.5 * (0.6 - top1["syn_hard"])
        return (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))

    for place, key in ((found, "top1"), (found["best_epoch"], "best_top1")):
        wanted = [lrs(seed, key) for seed in ("0", "1")]
        assert list(place["LRS"]["seeds"].values()) == pytest.approx(wanted, abs=1e-5)
        assert place["LRS"]["mean"] == pytest.approx(sum(wanted) / 2, abs=1e-5)
        assert place["LRS"]["std"] == pytest.approx(statistics.stdev(wanted), abs=1e-5)
    for name, values in found["accuracies"].items():
        assert values["mean"] == pytest.approx(results[name]["top1"]["mean"] / 100, abs=1e-5)
    said = capsys.readouterr().out
    assert f"LRS {found['LRS']['mean']:.3f}" in said and f"ARS {found['ARS']['mean']:.3f}" in said
    assert all(f"{values['mean']:.3f}" in said for values in found["accuracies"].values())


def test_overwrite_makes_what_lies_in_score_anew(scored):
    run = scored / "run"
    kept, made = (run / PLACES[name] / "seed0" / "checkpoint.pth" for name in ("rnd_any", "syn_hard"))
    stamps = [path.stat().st_mtime_ns for path in (kept, made)]
    before = results_of(scored)["syn_hard"]["top1"]
    run_main(*flags_of(scored, "--overwrite"))
    assert kept.stat().st_mtime_ns == stamps[0] and made.stat().st_mtime_ns > stamps[1]
    assert results_of(scored)["syn_hard"]["top1"] == before


def test_arms_that_do_not_compare_are_refused(scored):
    path = scored / "run" / PLACES["rnd_any"] / "results.json"
    results = json.loads(path.read_text())
    try:
        write_json(path, {**results, "protocol": {**results["protocol"], "epochs": 3}})
        assert "by another protocol than" in refused(*flags_of(scored))
        labels = {**results["protocol"]["labels"], "codec": "topk:2"}
        write_json(path, {**results, "protocol": {**results["protocol"], "labels": labels}})
        assert "(codec of the labels)" in refused(*flags_of(scored))
        labels = {**results["protocol"]["labels"], "images_sha256": "0" * 64}
        write_json(path, {**results, "protocol": {**results["protocol"], "labels": labels}})
        assert "was trained on other images than the labels in" in refused(*flags_of(scored))
    finally:
        write_json(path, results)


def test_what_cannot_be_scored_is_refused_before_anything_is_trained(world, tmp_path):
    flags = [flag for flag in flags_of(world) if flag not in ("--real-hard", 60)]
    assert "give it in percent with --real-hard" in refused(*flags)
    measured = {"teacher": {"arch": ARCH, "top1": 50.0}}
    write_record(tmp_path / "labels.manifest.json", {"settings": measured})
    args = score.get_args([*map(str, flags[1:])])
    assert score.find_real_hard(args, tmp_path / "labels")[0] == 50
    for more in ({"teacher": {"arch": "resnet18", "top1": 50.0}}, {"teachers": [measured["teacher"]] * 2}):
        write_record(tmp_path / "labels.manifest.json", {"settings": measured | more})
        with pytest.raises(UserError, match=f"{ARCH}, trained on all real images; .* with --real-hard"):
            score.find_real_hard(args, tmp_path / "labels")
    assert "run relabel.sh and train.sh first" in refused(*flags_of(world, "--model", "resnet18"))
