"""Picked real images: the kinds of pick, the scores, what is cut, and the folder that is left."""
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from recover import pick, picks, scores
from recover.picks import Cell
from relabel import check, relabel
from report import summary
from report.data import read_run
from sre2l.data.augment import unit_rng
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import Images, encode
from sre2l.data.real_images import read_digits, show
from sre2l.nets import statistics
from sre2l.nets.models import build_network
from sre2l.nets.teacher import load_teacher
from sre2l.run.files import write_json
from tests.helpers import SMALL, bare_checkpoint, before_call, refused, run_main
from tests.nets import like_trained
from tests.test_continue import files_of
from tests.test_interrupts import handlers, interrupted  # noqa: F401  a fixture
from tests.worlds import make_world, recover_flags, teacher, train_flags
from validate import random_real, train

ARCH = "convnet2-w8"
MEAN, STD = (torch.tensor(value).double().view(3, 1, 1) for value in (DATASETS["cifar10"].mean,
                                                                     DATASETS["cifar10"].std))
PER_CLASS = 9


# -- kinds of pick

@pytest.mark.parametrize("ipc, cells", [(1, 1), (3, 1), (4, 4), (2, 9)])
@pytest.mark.parametrize("kind", picks.PICKS)
def test_no_place_is_picked_twice(kind, ipc, cells):
    for number in range(ipc * cells, 3 * ipc * cells + 2):
        ranking = np.random.default_rng(number).permutation(number)
        found = [list(places) for places in picks.PICKS[kind](ranking, ipc, cells)]
        flat = sum(found, [])
        assert [len(places) for places in found] == [cells] * ipc
        assert len(set(flat)) == len(flat) and set(flat) <= set(range(number))


def test_easiest_and_hardest_fill_mosaics_by_ranks_ipc_apart():
    ranking = np.arange(100, 120)
    assert [list(p) for p in picks.easiest(ranking, 3, 4)] == [
        [100, 103, 106, 109], [101, 104, 107, 110], [102, 105, 108, 111]]
    assert [list(p) for p in picks.hardest(ranking, 2, 4)] == [[119, 117, 115, 113], [118, 116, 114, 112]]


@pytest.mark.parametrize("number", [1, 2, 5, 8, 31])
def test_medium_alternates_from_the_middle_as_delt_does(number):
    """DELT: ranks from the hardest, m + int(-(-1)^i (i + 1) / 2) for image i, m = ceil(n / 2)."""
    ranking = np.random.default_rng(number).permutation(number)
    hardest_first = ranking[::-1].tolist()
    wanted = []
    sign = -1
    for i in range(2 * number + 2):
        rank = math.ceil(number / 2) + int(sign * (i + 1) / 2)
        sign = -sign
        if 0 <= rank < number:  # there an IndexError or, from the other end, a duplicate
            wanted.append(hardest_first[rank])
    assert sum(map(list, picks.medium(ranking, number, 1)), []) == wanted[:number]


def test_spread_takes_the_middle_front_or_back_of_equal_groups():
    ranking = np.random.default_rng(0).permutation(23)
    groups = [ranking[:6], ranking[6:12], ranking[12:18], ranking[18:]]  # 6, 6, 6 and 5
    for group, (middle,), (front,), (back,) in zip(groups, picks.spread(ranking, 4, 1),
                                                   picks.spread_front(ranking, 4, 1),
                                                   picks.spread_back(ranking, 4, 1), strict=True):
        assert (front, back) == (group[0], group[-1])
        assert abs(list(group).index(middle) - (len(group) - 1) / 2) <= 0.5


@pytest.mark.parametrize("kind", picks.GROWING)
def test_with_more_images_the_first_ones_of_a_growing_kind_stay(kind):
    ranking = np.random.default_rng(0).permutation(11)
    few, many = (list(map(list, picks.PICKS[kind](ranking, ipc, 1))) for ipc in (3, 11))
    assert few == many[:3]


def test_equal_scores_keep_the_drawn_order():
    candidates = [Cell(row, None, score) for row, score in ((5, 1.0), (3, 0.0), (9, 1.0), (1, 0.0))]
    chosen = picks.pick_scored({7: candidates}, "easiest", 4)
    assert [chosen[i, 7][0].row for i in range(4)] == [3, 1, 5, 9]


# -- what is cut

def test_crops_are_squares_inside_the_image_that_depend_on_seed_class_and_image_alone():
    boxes = picks.draw_boxes((40, 90), 200, seed=3, label=2, place=0)
    areas = boxes[:, 2] * boxes[:, 3] / (40 * 90)
    assert (boxes[:, 2] == boxes[:, 3]).all() and (boxes >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 40).all() and (boxes[:, 1] + boxes[:, 3] <= 90).all()
    assert 0.07 < areas.min() < 0.12 and areas.max() <= 40 * 40 / (40 * 90)
    assert (picks.draw_boxes((40, 90), 5, 3, 2, 0) != picks.draw_boxes((40, 90), 5, 3, 2, 1)).any()
    drawn = unit_rng(3, 2).random(4)  # what orders the class's images
    assert not np.isin(drawn, unit_rng(3, 2, 1).random(40)).any()


def test_a_square_that_never_fits_is_the_largest_in_the_centre():
    """Of a strip no area of 8 % or more makes a square that fits."""
    assert picks.draw_boxes((4, 400), 2, 0, 0, 0).tolist() == [[0, 198, 4, 4]] * 2


@pytest.mark.parametrize("size, first", [(8, 4), (9, 5)])
def test_cells_of_a_mosaic_stand_row_by_row(size, first):
    cells = np.stack([np.full((size // 2, size // 2, 3), value, np.uint8) for value in range(4)])
    picture = picks.mosaic(cells, size)
    assert picture.shape == (size, size, 3)
    for cell, rows, columns in ((0, slice(0, first), slice(0, first)),
                                (1, slice(0, first), slice(first, None)),
                                (2, slice(first, None), slice(0, first)),
                                (3, slice(first, None), slice(first, None))):
        assert (picture[rows, columns] == cell).all()


# -- a world of photographs of several shapes, and a teacher

def save_photograph(rng, path):
    height, width = rng.integers(34, 60, 2)
    small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """real/{train,val}/c0 ... c9 and t.pth, a network with statistics like a trained one's."""
    root = tmp_path_factory.mktemp("pick")
    rng = np.random.default_rng(0)
    for split, number in (("train", PER_CLASS), ("val", 2)):
        for label in range(10):
            folder = root / "real" / split / f"c{label}"
            folder.mkdir(parents=True)
            for i in range(number):
                save_photograph(rng, folder / f"{i}.png")
    torch.manual_seed(0)
    network, _ = build_network(ARCH, 10, "torchvision", size=32)
    torch.save(like_trained(network, 1).float().state_dict(), root / "t.pth")
    return root


def flags_of(root, folder, *flags):
    return (pick, "--dataset", "cifar10", "--name", folder, "--real-data", root / "real", "--device", "cpu",
            "--teacher", root / "t.pth", "--arch", ARCH, "--allow-chance", "--ipc-end", 2, *flags)


def all_of(folder):
    """The files of a pick, and those beside it that say how the images came about."""
    beside = ("chosen.json", "scores.jsonl", "sha256", "groups.pth")
    found = {name: folder / f"picked.{name}" for name in beside}
    return {**files_of(folder / "picked"),
            **{name: path.read_bytes() for name, path in found.items() if path.exists()}}


def network64(root):
    """The teacher as a formula over its weights in fp64: views (n, 3, 32, 32) -> (logits, what each BatchNorm
    layer sees)."""
    weights = {key: value.double() for key, value in torch.load(root / "t.pth").items()}

    def forward(x):
        seen = []
        for i in range(2):
            x = F.conv2d(x, weights[f"layers.conv.{i}.weight"], weights[f"layers.conv.{i}.bias"], padding=1)
            mean, var, gain, bias = (weights[f"layers.norm.{i}.{key}"].view(-1, 1, 1)
                                     for key in ("running_mean", "running_var", "weight", "bias"))
            seen.append((x, mean.flatten(), var.flatten()))
            x = F.avg_pool2d(F.relu((x - mean) / (var + 1e-5).sqrt() * gain + bias), 2)
        return x.flatten(1) @ weights["classifier.weight"].T + weights["classifier.bias"], seen
    return forward


def cut_with_pillow(pixels, box, size):
    """A crop (size, size, 3) uint8. box: top, left, height, width."""
    top, left, height, width = box
    view = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    return np.asarray(view.resize((size, size), Image.Resampling.BILINEAR))


def shown64(views, size=32):
    """Views (n, s, s, 3) uint8, normalised in fp64, in the middle of zeros."""
    normal = (torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).double() / 255 - MEAN) / STD
    canvas = torch.zeros(len(views), 3, size, size, dtype=torch.float64)
    at = (size - normal.shape[-1]) // 2
    canvas[:, :, at:at + normal.shape[-1], at:at + normal.shape[-1]] = normal
    return canvas


def cross_entropy64(forward, shown, label):
    logits, _ = forward(shown)
    return -(logits[:, label] - logits.exp().sum(1).log())


def distance64(forward, shown, label):
    """methods.md g.3 (1), written out."""
    terms = []
    for x, mean, var in forward(shown)[1]:
        m = x.mean((2, 3))
        v = ((x - m[:, :, None, None]) ** 2).mean((2, 3))
        ratio = ((v + 1e-6) / (var + 1e-6)).log()
        norms = ((m - mean) ** 2).sum(1).sqrt() + (ratio ** 2).sum(1).sqrt()
        terms.append(norms / math.sqrt(len(mean)))
    return sum(terms) / len(terms)


def real_files(root, label):
    return [root / "real" / "train" / f"c{label}" / f"{i}.png" for i in range(PER_CLASS)]


@pytest.mark.parametrize("score, formula", [("confidence", cross_entropy64), ("gps", distance64)])
def test_scores_are_those_of_the_formula_in_fp64_and_mosaics_are_cut_as_recorded(root, tmp_path, score,
                                                                                formula):
    """RDED: the best of m crops of side S / 2 in the middle of zeros; ranks j, j + IPC, ... row by row."""
    run_main(*flags_of(root, tmp_path, "--score", score, "--pick", "easiest", "--crops", 3, "--grid", 2,
                       "--seed", 5))
    forward = network64(root)
    chosen = json.loads((tmp_path / "picked.chosen.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "picked.scores.jsonl").read_text().splitlines()]
    assert [line["class"] for line in lines] == list(range(10))
    for line in lines[:4]:
        label = line["class"]
        order = unit_rng(5, label).permutation(PER_CLASS).tolist()
        ranked = []
        for place, value, box in zip(order, line["scores"], line["boxes"], strict=True):
            pixels = np.asarray(Image.open(real_files(root, label)[place]))
            boxes = picks.draw_boxes(pixels.shape[:2], 3, 5, label, place).tolist()
            found = formula(forward, shown64([cut_with_pillow(pixels, b, 16) for b in boxes]), label)
            assert value == pytest.approx(found.min().item(), rel=1e-4)
            assert found[boxes.index(box)] == pytest.approx(found.min().item(), rel=1e-4)
            ranked.append((value, place, cut_with_pillow(pixels, box, 16)))
        ranked.sort(key=lambda entry: entry[0])
        for j in range(2):
            cells = ranked[j::2][:4]
            name = f"new00{label}/class00{label}_id00{j}.png"
            picture = np.asarray(Image.open(tmp_path / "picked" / name))
            assert (picture[:16, :16] == cells[0][2]).all() and (picture[:16, 16:] == cells[1][2]).all()
            assert (picture[16:, :16] == cells[2][2]).all() and (picture[16:, 16:] == cells[3][2]).all()
            assert [part["source"] for part in chosen[name]] == [f"c{label}/{cell[1]}.png" for cell in cells]
            assert [part["score"] for part in chosen[name]] == [cell[0] for cell in cells]


def test_whole_images_are_squares_as_the_random_control_shows_them(root, tmp_path):
    run_main(*flags_of(root, tmp_path, "--crops", 0, "--pick", "hardest"))
    chosen = json.loads((tmp_path / "picked.chosen.json").read_text())
    forward = network64(root)
    for label in range(2):
        views = [show(np.asarray(Image.open(file)), 32, 32) for file in real_files(root, label)]
        order = cross_entropy64(forward, shown64(views), label).argsort(descending=True)
        for ipc, place in enumerate(order[:2].tolist()):
            name = f"new00{label}/class00{label}_id00{ipc}.png"
            assert (np.asarray(Image.open(tmp_path / "picked" / name)) == views[place]).all()
            (cell,) = chosen[name]
            top, left, height, width = cell["box"]
            assert cell["source"] == f"c{label}/{place}.png"
            assert height == width == min(Image.open(real_files(root, label)[place]).size)
    run_main(check, "--dataset", "cifar10", "--name", tmp_path, "--data", tmp_path / "picked")


def test_several_teachers_rank_by_the_mean_of_their_ranks(root, tmp_path):
    """Of all candidates of a class, since the scores of two do not compare."""
    torch.manual_seed(1)
    other, _ = build_network(ARCH, 10, "torchvision", size=32)
    torch.save(like_trained(other, 2).float().state_dict(), tmp_path / "t.pth")
    flags = flags_of(root, tmp_path / "run", "--teacher", f"{root / 't.pth'},{tmp_path / 't.pth'}", "--arch",
                     f"{ARCH},{ARCH}", "--crops", 2)
    run_main(*flags)
    line = json.loads((tmp_path / "run" / "picked.scores.jsonl").read_text().splitlines()[3])
    candidates = []
    for place in unit_rng(0, 3).permutation(PER_CLASS).tolist():
        pixels = np.asarray(Image.open(real_files(root, 3)[place]))
        boxes = picks.draw_boxes(pixels.shape[:2], 2, 0, 3, place).tolist()
        candidates += [(box, cut_with_pillow(pixels, box, 32)) for box in boxes]
    views = shown64([view for _, view in candidates])
    ranks = [cross_entropy64(network64(folder), views, 3).argsort().argsort() for folder in (root, tmp_path)]
    means = (sum(ranks) / 2).view(-1, 2)
    assert line["scores"] == means.min(1).values.tolist()
    assert line["boxes"] == [candidates[2 * i + k][0] for i, k in enumerate(means.min(1).indices.tolist())]
    assert "the statistics are one teacher's" in refused(*flags, "--pick", "spread", "--group-statistics")


def test_very_hard_images_have_finite_scores_and_very_easy_ones_different_ones():
    logits = torch.tensor([[0.0, 300.0], [30.0, 0.0], [31.0, 0.0]])
    found = scores.confidence(lambda views: logits, None, 0)
    assert found[0] == 300 and 0 < found[2] < found[1] < 1e-12


# -- the folder that is left

@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """A pick in peace, each class in three parts -> (flags, what it left)."""
    folder = tmp_path_factory.mktemp("whole")
    flags = ("--pick", "spread", "--crops", 2, "--group-statistics", "--most", 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "VIEWS", 6)
        run_main(*flags_of(root, folder, *flags))
        yield flags, all_of(folder)


def count_views(monkeypatch):
    """-> the classes whose images are scored from now on, a list that grows."""
    labels = []
    original = scores.score_views

    def score(teachers, how, views, label, spec):
        labels.append(label)
        return original(teachers, how, views, label, spec)
    monkeypatch.setattr(scores, "score_views", score)
    return labels


@pytest.mark.usefixtures("handlers")
def test_a_signal_within_the_scores_costs_one_class(root, whole, tmp_path, monkeypatch, capsys):
    flags, wanted = whole
    flags = flags_of(root, tmp_path, *flags, "-j", 0)
    interrupted(monkeypatch, scores, "score_views", 8, flags)
    assert "stopped after 2 of 10 classes" in capsys.readouterr().out
    scored = count_views(monkeypatch)
    run_main(*flags)
    assert scored == [label for label in range(2, 10) for _ in range(3)]
    assert all_of(tmp_path) == wanted


def test_a_kill_between_scores_and_images_costs_no_score(root, whole, tmp_path, monkeypatch):
    flags, wanted = whole
    flags = flags_of(root, tmp_path, *flags, "--workers", 2)

    def die():
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before_call(patch, pick, "encode", 9, die)
        run_main(*flags)
    (tmp_path / "picked.scores.jsonl").open("a").write('{"class": 9, "scores": [0.')  # torn by another kill
    written = len(files_of(tmp_path / "picked"))
    assert 0 < written < 20
    scored = count_views(monkeypatch)
    run_main(*flags)
    assert scored == [] and all_of(tmp_path) == wanted


def test_two_processes_pick_what_one_picks(root, whole, tmp_path, monkeypatch):
    """One after the other: each has every second class, and the last one computes the groups."""
    flags, wanted = whole
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        run_main(*flags_of(root, tmp_path, *flags, "-j", 1))
        assert (tmp_path / "picked.groups.pth").exists() == (rank == 1)
    assert all_of(tmp_path) == wanted


def test_a_damaged_image_is_written_again_and_other_settings_are_refused(root, whole, tmp_path):
    flags, wanted = whole
    run_main(*flags_of(root, tmp_path, *flags))
    assert all_of(tmp_path) == wanted
    damaged = tmp_path / "picked" / "new003" / "class003_id001.png"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (tmp_path / "picked.groups.pth").write_bytes(b"")
    run_main(*flags_of(root, tmp_path, *flags))
    assert all_of(tmp_path) == wanted
    for other in (("--seed", 1), ("--ipc-end", 3), ("--most", 7), ("--pick", "spread-front"), ("--crops", 3)):
        assert f"{other[0][2:].partition('-')[0]}" in refused(*flags_of(root, tmp_path, *flags, *other))
    run_main(*flags_of(root, tmp_path, "--score", "random", "--overwrite"))
    assert not (tmp_path / "picked.scores.jsonl").exists() and not (tmp_path / "picked.groups.pth").exists()


def test_more_images_of_a_class_leave_those_that_are_there(root, tmp_path):
    """Where the ranking is not cut into as many parts as images."""
    run_main(*flags_of(root, tmp_path, "--crops", 0))
    few = files_of(tmp_path / "picked")
    run_main(*flags_of(root, tmp_path, "--crops", 0, "--ipc-end", 4))
    many = files_of(tmp_path / "picked")
    assert len(few) == 20 and len(many) == 40 and few.items() <= many.items()


def test_a_kind_that_is_not_known_to_grow_does_not(root, tmp_path, monkeypatch):
    monkeypatch.setitem(picks.PICKS, "new", picks.spread)
    flags = flags_of(root, tmp_path, "--crops", 0, "--pick", "new")
    run_main(*flags)
    assert "ipc: there 2, here 3" in refused(*flags, "--ipc-end", 3)


def test_groups_are_the_statistics_of_equal_parts_of_every_class_s_ranking(root, tmp_path, whole):
    run_main(*flags_of(root, tmp_path, *whole[0]))
    lines = [json.loads(line) for line in (tmp_path / "picked.scores.jsonl").read_text().splitlines()]
    spec = DATASETS["cifar10"]
    network = load_teacher(spec, root / "t.pth", ARCH)
    found = statistics.load(tmp_path / "picked.groups.pth", network, "group")
    forward = network64(root)
    for group in range(2):
        views = []
        for line in lines:
            order = unit_rng(0, line["class"]).permutation(PER_CLASS)[:8]
            ranked = order[np.argsort(line["scores"])]
            files = real_files(root, line["class"])
            views += [show(np.asarray(Image.open(files[place])), 32, 32)
                      for place in ranked[4 * group:4 * group + 4]]
        x = forward(shown64(views))[1][0][0]  # the first layer, which no other normalises: one batch of 40
        assert torch.allclose(found.mean[0][group].double(), x.mean((0, 2, 3)), atol=1e-4)
        assert torch.allclose(found.var[0][group].double(), x.var((0, 2, 3)), rtol=1e-4)


# -- refusals

@pytest.mark.parametrize("flags, sentence", [
    (("--ipc-end", 10), "class 0 has 9 images, 10 are wanted; make fewer of each class: --ipc-end 9"),
    (("--ipc-end", 3, "--grid", 2), "class 0 has 9 images, 12 are wanted (4 for each picked one); make fewer "
                                    "of each class: --ipc-end 2"),
    (("--score", "random", "--ipc-end", 10), "class 0 has 9 images, 10 are wanted"),
    (("--most", 1), "--most 1: 2 images of a class are picked; score as many or more"),
    (("--classes", "3,10"), "--classes: class 10 is out of range, cifar10 has 10 (0-9)"),
    (("--group-statistics",), "--group-statistics: image g of a class belongs to group g with --pick spread"),
    (("--score", "random", "--pick", "spread", "--group-statistics"),
     "and with a --score other than random")])
def test_what_cannot_be_picked_is_refused_before_anything_is_written(root, tmp_path, flags, sentence):
    assert sentence in refused(*flags_of(root, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def test_a_teacher_whose_scores_are_no_numbers_is_refused(root, tmp_path):
    weights = torch.load(root / "t.pth")
    weights["classifier.bias"][:] = math.nan
    torch.save(weights, tmp_path / "nan.pth")
    flags = flags_of(root, tmp_path, "--teacher", tmp_path / "nan.pth")
    assert "the score of an image of class 0 is not finite" in refused(*flags)


@pytest.mark.parametrize("flags", (("--score", "gps"), ("--pick", "spread", "--group-statistics")))
def test_a_teacher_without_batchnorm_has_no_statistics_to_pick_by(root, tmp_path, flags):
    to_train = (pick, "--dataset", "cifar10", "--name", tmp_path / "run", *flags, "--dry-run", "--arch")
    assert "squeezenet1_1 has no BatchNorm layer" in refused(*to_train, "squeezenet1_1")
    assert ("leave it away" if "--group-statistics" in flags else "--score confidence") in \
        refused(*to_train, "squeezenet1_1")
    if "--group-statistics" in flags:
        assert "the statistics are one teacher's" in refused(*to_train, "resnet18,convnet3")
    bare_checkpoint(tmp_path / "plain.pth", "squeezenet1_1")
    flags = flags_of(root, tmp_path / "run", *flags, "--teacher", tmp_path / "plain.pth",
                     "--arch", "squeezenet1_1")
    assert "squeezenet1_1" in (found := refused(*flags)) and "has no BatchNorm layer" in found
    assert found == refused(*flags, "--dry-run")
    assert not (tmp_path / "run").exists()


# -- the controls

@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_random_picks_are_the_images_of_the_random_control_as_they_always_were(tmp_path, suffix):
    """The bytes of the control before pick was there: a permutation by (seed, class), the first IPC of it."""
    real = read_digits("train", 32)
    run_main(pick, "--dataset", "digits", "--name", tmp_path, "--score", "random", "--seed", 4,
             "--ipc-end", 3, *["--jpeg"] * (suffix == ".jpg"))
    found = files_of(tmp_path / "picked")
    assert len(found) == 30
    for label in range(10):
        rows = np.random.default_rng([4, label]).permutation(np.flatnonzero(real.labels == label))[:3]
        for i, row in enumerate(rows):
            name = Path(f"new00{label}/class00{label}_id00{i}{suffix}")
            assert found[name] == encode(show(real.pixels(row), 32, 32), suffix)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run with images, labels and a student, as small as can be."""
    root = make_world(tmp_path_factory.mktemp("controls"))
    shutil.rmtree(root / "run")
    run_main(*recover_flags(root, "--lossless", name="run"))
    common = ("--dataset", "cifar10", "--name", root / "run", "--device", "cpu")
    run_main(relabel, *common, *teacher(root), "--epochs", 1, "-b", 5, "-j", 0)
    run_main(*train_flags(root, "--gradient-accumulation-steps", 1))
    return root


def test_picked_images_have_a_control_of_their_own(world, capsys):
    run = world / "run"
    control = (random_real, "--dataset", "cifar10", "--name", run, "--model", SMALL)
    picking = (pick, "--dataset", "cifar10", "--name", run, "--real-data", world / "real", "--device", "cpu",
               *teacher(world), "--allow-chance", "--crops", 0)
    assert "picked: there is no such folder" in refused(*control, "--picked")
    run_main(*picking, "--ipc-end", 2)
    assert "has another ipc than the distilled images (2, and 1 there); pick as many of the same: pick.sh " \
           "--ipc-end 1 --overwrite" in refused(*control, "--picked")
    run_main(*picking, "--ipc-end", 1, "--overwrite")
    run_main(*control, "--real-data", world / "real")
    assert "one are PNG" not in capsys.readouterr().out
    run_main(*control, "--picked")
    assert not (run / "picked_real" / "images").exists()
    results = json.loads((run / "picked_real" / f"student_{SMALL}" / "results.json").read_text())
    labels = json.loads((run / "picked_real" / "labels.manifest.json").read_text())["settings"]
    assert labels["num_images"] == results["protocol"]["labels"]["num_images"] == 10
    names = {student.name: student.label for student in read_run(run).students}
    assert names[f"picked_real/student_{SMALL}"] == f"{SMALL}, picked real images, soft labels"
    assert names[f"random_real/student_{SMALL}"] == f"{SMALL}, random real images, soft labels"
    assert list(names) == [f"{where}student_{SMALL}" for where in ("", "picked_real/", "random_real/")]

    shutil.copytree(run / f"student_{SMALL}", run / f"student_{SMALL}_hard")  # a control that is not at stake
    run_main(summary, "--dataset", "cifar10", "--name", run, "--model", SMALL)
    values = json.loads((run / "summary.json").read_text())
    assert values["picked_real_top1"] == results["top1"]["mean"]
    assert "student, picked real images, soft labels" in capsys.readouterr().out
    results["protocol"]["labels"]["images_sha256"] = "0" * 64
    write_json(run / "picked_real" / f"student_{SMALL}" / "results.json", results)
    assert "run random_real.sh with --picked again" in refused(
        summary, "--dataset", "cifar10", "--name", run, "--model", SMALL)


def test_picked_images_that_are_the_set_are_no_control_and_are_called_what_they_are(world, tmp_path, capsys):
    """As of an RDED run: folders tell the controls, and the set's seconds are pick's."""
    common = ("--dataset", "cifar10", "--name", tmp_path, "--device", "cpu")
    run_main(pick, *common, "--real-data", world / "real", *teacher(world), "--allow-chance", "--crops", 0,
             "--ipc-end", 1, "--exp-name", "images")
    run_main(relabel, *common, *teacher(world), "--epochs", 1, "-b", 5, "-j", 0)
    run_main(train, *common, "--val-dir", world / "real", "--model", SMALL, "--epochs", 1, "-j", 0,
             "--gradient-accumulation-steps", 1)
    for name in (f"student_{SMALL}_hard", f"random_real/student_{SMALL}"):
        shutil.copytree(tmp_path / f"student_{SMALL}", tmp_path / name)
    capsys.readouterr()
    run_main(summary, "--dataset", "cifar10", "--name", tmp_path, "--model", SMALL)
    students = read_run(tmp_path).students
    assert [student.control for student in students] == ["", "random_real", "hard"]
    seconds = json.loads((tmp_path / "summary.json").read_text())["seconds"]
    assert seconds["pick"] > 0 and "recover" not in seconds
    said = capsys.readouterr().out
    assert "student, picked real images, soft labels" in said and "distilled" not in said
    assert "images (pick)" in (tmp_path / "report.html").read_text()


def test_images_that_are_no_files_are_named_by_their_number_in_the_class():
    pixels = np.zeros((3, 40, 33, 3), np.uint8)
    images = Images(list(pixels), np.array([1, 0, 1]), ["a", "b"], "")
    assert pick.describe_cell(images, 1, Cell(2)) == {"source": 1, "box": [4, 0, 33, 33], "score": None}
