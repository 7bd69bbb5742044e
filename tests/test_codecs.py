"""Codecs and packed files: what they keep of the logits, what they refuse, what students learn."""
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch

from relabel import check, plan, relabel
from report.page import make_report
from sre2l.data import packed
from sre2l.data.augment import draw_crops, draw_mix
from sre2l.data.codecs import codec_of
from sre2l.data.label_files import LabelBatch, read_label_batch
from sre2l.data.packed import ENTRY, HEADER, encode_epoch, packed_name
from sre2l.run.errors import UserError
from sre2l.run.files import sidecar
from sre2l.run.hashes import AGAIN
from tests.helpers import SMALL, bare_checkpoint, refused, run_main
from tests.worlds import relabel_flags, train_flags
from validate import random_real

CODECS = ("fp16", "fp32", "uint8", "topk:1", "topk:5", "topk:40")
STORED = ("fp16", "uint8", "topk:3")


def some_logits(rows, classes, seed=0):
    """Logits as wide as a teacher's, a constant row and one far from 0 among them."""
    logits = 8 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    logits[0] = 3.1
    logits[1] += 900
    return logits


def round_trip(name, logits):
    codec = codec_of(name)
    arrays = codec.encode(logits)
    assert [(array.dtype, array.shape) for array in arrays] == codec.shapes(*logits.shape)
    return codec.decode(arrays, logits.shape[1])


def test_uint8_is_within_half_a_step_and_topk_is_the_softmax_over_the_largest():
    logits = some_logits(50, 30)
    assert torch.equal(round_trip("fp16", logits), logits.half())
    assert torch.equal(round_trip("fp32", logits), logits)

    span = logits.max(1).values - logits.min(1).values
    step = (span / 255 * (1 + 2 ** -9) + logits.abs().max(1).values * 2 ** -9 / 255).clamp(min=1e-6)
    assert ((round_trip("uint8", logits) - logits).abs().max(1).values <= 0.51 * step + 1e-3).all()

    found = (round_trip("topk:5", logits).float() / 20).softmax(1)
    for row, values in zip(found, logits.half().float()):
        order = sorted(range(30), key=lambda i: (-values[i].item(), i))[:5]
        weights = torch.tensor([np.exp(values[i].item() / 20 - values[order[0]].item() / 20) for i in order])
        assert row[order].tolist() == pytest.approx((weights / weights.sum()).tolist(), rel=1e-4)
        assert row.sum().item() == pytest.approx(1) and int((row > 0).sum()) == 5


def label_batches(classes=30, sizes=(7, 7, 3), kind="cutmix"):
    rng = np.random.default_rng(0)
    return [LabelBatch(draw_crops([(40, 30)] * rows, "resized", (0.08, 1), 0, True, rng),
                       draw_mix(kind, 1.0, rows, 32, rng), some_logits(rows, classes).half())
            for rows in sizes]


def same(one, other):
    logits = torch.equal(one.logits, other.logits)
    return logits and repr((one.crops, one.mix)) == repr((other.crops, other.mix))


@pytest.mark.parametrize("kind", ("cutmix", "mixup", "none"))
@pytest.mark.parametrize("name", CODECS)
def test_a_packed_file_gives_back_what_went_in_and_is_read_by_plain_numpy(tmp_path, name, kind):
    batches = label_batches(kind=kind)
    data = encode_epoch(4, batches, name)
    (tmp_path / packed_name(4)).write_bytes(data)
    for index, batch in enumerate(batches):
        found = read_label_batch(tmp_path, 4, index, len(batch.logits), 30)
        assert same(found, batch._replace(logits=round_trip(name, batch.logits)))

    header = np.frombuffer(data, HEADER, 1)[0]
    table = np.frombuffer(data, ENTRY, 3, HEADER.itemsize)
    assert (header["epoch"], header["codec"].decode(), header["mix"].decode()) == (4, name, kind)
    for entry, batch in zip(table, batches):
        part = data[entry["offset"]:][:entry["num_bytes"]]
        assert hashlib.sha256(part).digest() == entry["sha256"].tobytes()
        assert np.frombuffer(part, "<f4", batch.crops.boxes.numel()).tolist() == \
            batch.crops.boxes.flatten().tolist()
    assert sum(table["num_bytes"]) + table["offset"][0] == len(data)


def test_every_changed_byte_and_every_cut_is_found_without_a_hash_file(tmp_path):
    data = encode_epoch(0, label_batches(sizes=(3, 2)), "topk:2")
    path = tmp_path / packed_name(0)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(UserError, match="epoch_0.labels"):
            for index in range(2):
                read_label_batch(tmp_path, 0, index)
    for end in range(0, len(data), 37):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="epoch_0.labels"):
            read_label_batch(tmp_path, 0, 0)
    path.unlink()
    (tmp_path / packed_name(1)).write_bytes(data)
    with pytest.raises(UserError, match="that of epoch 0"):
        read_label_batch(tmp_path, 1, 0)
    with pytest.raises(UserError, match="epoch_2.labels: .* missing"):
        read_label_batch(tmp_path, 2, 0)


def test_a_file_that_is_mapped_again_is_not_read_through_again(tmp_path, monkeypatch):
    """A pool takes a batch from any epoch, and only a few stay mapped. What changes is still found."""
    hashes = {}
    for epoch in range(5):
        data = encode_epoch(epoch, label_batches(), "fp16")
        (tmp_path / packed_name(epoch)).write_bytes(data)
        hashes[packed_name(epoch)] = hashlib.sha256(data).hexdigest()
    digests = []
    EpochFile = packed.EpochFile
    monkeypatch.setattr(packed, "EpochFile",
                        lambda path, digest: digests.append(digest) or EpochFile(path, digest))
    for epoch in (0, 1, 2, 3, 4, 0, 3, 1):
        found = read_label_batch(tmp_path, epoch, 1, hashes=hashes)
        assert same(found, label_batches()[1])
    assert digests == [*hashes.values(), None, None, None]
    path = tmp_path / packed_name(2)
    path.write_bytes(encode_epoch(2, label_batches(kind="mixup"), "fp16"))
    with pytest.raises(UserError, match="epoch_2.labels: its sha256"):
        read_label_batch(tmp_path, 2, 1, hashes=hashes)


def resealed(data, **changed):
    """A packed file with other values in its header, whose checksums fit: a stranger's."""
    from sre2l.data.packed import head_bytes, head_digest
    header = np.frombuffer(data, HEADER, 1).copy()
    for key, value in changed.items():
        header[key] = value
    end = head_bytes(2)
    head = header.tobytes() + data[HEADER.itemsize:end]
    header["sha256"] = np.void(head_digest(head))
    return header.tobytes() + data[HEADER.itemsize:]


@pytest.mark.parametrize("changed", ({"num_batches": 2 ** 63}, {"num_batches": 3}, {"num_classes": 2 ** 62},
                                     {"codec": b"topk:0"}, {"codec": b"uint8"},
                                     {"mix": b"both"}, {"mix": b"none"}, {"num_batches": 0}), ids=str)
def test_a_header_that_claims_something_else_is_refused(tmp_path, changed):
    (tmp_path / packed_name(0)).write_bytes(
        resealed(encode_epoch(0, label_batches(sizes=(3, 2)), "topk:2"), **changed))
    with pytest.raises(UserError, match="epoch_0.labels"):
        read_label_batch(tmp_path, 0, 0)


@pytest.fixture(scope="module")
def labels(world, tmp_path_factory):
    """Two epochs of the world's images by each codec -> {codec: folder}; 'released' are the world's own."""
    root = tmp_path_factory.mktemp("codecs")
    found = {"released": world / "run" / "labels"}
    for name in (*STORED, "none"):
        found[name] = root / name.replace(":", "")
        flags = ("--codec", name, *["--packed"] * (name == "fp16"), "--fkd-path", found[name])
        run_main(*relabel_flags(world, "--epochs", 2, "-b", 8, *flags))
    return found


def batches_of(root):
    return [read_label_batch(root, epoch, index) for epoch in range(2) for index in range(3)]


def test_each_codec_stores_the_teachers_logits_and_the_same_draws(labels):
    released = batches_of(labels["released"])
    for name in STORED:
        packed = batches_of(labels[name])
        assert all(same(one, other._replace(logits=round_trip(name, other.logits)))
                   for one, other in zip(packed, released, strict=True))
    assert list(labels["none"].iterdir()) == []


def test_check_finds_no_fault_in_any_codec_and_a_byte_in_each(world, labels, tmp_path, capsys):
    flags = ("--dataset", "cifar10", "--data", world / "run" / "images", "--fkd-path")
    for name in (*STORED, "none"):
        run_main(check, *flags, labels[name])
        assert "no fault found" in capsys.readouterr().out
    for name in STORED:
        copy = shutil.copytree(labels[name], tmp_path / labels[name].name)
        for suffix in (".manifest.json", ".sha256"):
            shutil.copy(f"{labels[name]}{suffix}", f"{copy}{suffix}")
        data = bytearray((copy / "epoch_1.labels").read_bytes())
        data[-100] ^= 1
        (copy / "epoch_1.labels").write_bytes(data)
        with pytest.raises(SystemExit):
            run_main(check, *flags, copy)
        assert "epoch_1.labels: its sha256" in capsys.readouterr().out
        assert "epoch_1.labels: " in refused(*train_flags(
            world, "--fkd-path", copy, "--epochs", 2, "--output-dir", tmp_path / "student"))


def test_check_finds_draws_that_are_not_the_seeds(world, labels, tmp_path, capsys):
    """A file whose hashes all fit, but whose first two crops are exchanged."""
    copy = shutil.copytree(labels["fp16"], tmp_path / "labels")
    for suffix in (".manifest.json", ".sha256"):
        shutil.copy(f"{labels['fp16']}{suffix}", f"{copy}{suffix}")
    batches = [read_label_batch(copy, 1, index) for index in range(3)]
    batches[0].crops.boxes[:2] = batches[0].crops.boxes[:2].flip(0)
    data = encode_epoch(1, batches, "fp16")
    (copy / "epoch_1.labels").write_bytes(data)
    listing = tmp_path / "labels.sha256"
    old = hashlib.sha256((labels["fp16"] / "epoch_1.labels").read_bytes()).hexdigest()
    listing.write_text(listing.read_text().replace(old, hashlib.sha256(data).hexdigest()))
    from sre2l.run.output import read_record, write_record
    record = read_record(tmp_path / "labels.manifest.json")
    write_record(tmp_path / "labels.manifest.json",
                 {**record, "hashes": hashlib.sha256(listing.read_bytes()).hexdigest()})
    with pytest.raises(SystemExit):
        run_main(check, "--dataset", "cifar10", "--data", world / "run" / "images", "--fkd-path", copy)
    assert "epoch_1.labels, batch 0: its crops or its mix are not those" in capsys.readouterr().out


def history(world, root, tmp_path, *flags):
    """A student's weights after two epochs."""
    out = tmp_path / f"student_{root.name}"
    run_main(*train_flags(world, "--epochs", 2, "--fkd-path", root, "--output-dir", out,
                          "--gradient-accumulation-steps", 1, *flags))
    return out, torch.load(out / "seed0" / "checkpoint.pth")["model"]


def test_none_gives_the_student_of_the_stored_logits_bit_for_bit(world, labels, tmp_path):
    _, stored = history(world, labels["released"], tmp_path)
    for name, *flags in (("fp16", "-j", 2), ("none", "-j", 2), ("none",)):  # also by threads
        out, derived = history(world, labels[name], tmp_path / str(len(flags)), *flags)
        assert all(torch.equal(stored[key], derived[key]) for key in stored)
    results = json.loads((out / "results.json").read_text())
    assert results["label_bytes"] == 0 and results["protocol"]["labels"]["codec"] == "none"
    assert "0 bytes of labels, which the teacher gives beside the student" in make_report(out)
    _, hard = history(world, labels["none"], tmp_path / "hard", "--hard-labels")
    assert any(not torch.equal(stored[key], hard[key]) for key in stored)


def test_the_hash_file_of_none_is_written_again_by_relabel_and_check_says_so(world, labels, tmp_path):
    copy = tmp_path / "labels"
    copy.mkdir()
    shutil.copy(sidecar(labels["none"], "manifest.json"), sidecar(copy, "manifest.json"))
    message = refused(*train_flags(world, "--fkd-path", copy, "--output-dir", tmp_path / "s"))
    assert f"labels.sha256: this file of hashes is missing; {AGAIN}" in message


def test_none_refuses_another_teacher_and_other_draws(world, labels, tmp_path, monkeypatch, capsys):
    torch.manual_seed(5)
    other = bare_checkpoint(tmp_path / "other.pth", wrap=lambda weights: {
        key: value + 1 if value.is_floating_point() else value for key, value in weights.items()})
    flags = ("--fkd-path", labels["none"], "--output-dir", tmp_path / "s")
    message = refused(*train_flags(world, *flags, "--label-teacher", other))
    assert "the labels' teacher has the sha256" in message
    (world / "teacher.pth").rename(world / "moved.pth")
    try:
        assert "--label-teacher FILE" in refused(*train_flags(world, *flags))
        run_main(*train_flags(world, *flags, "--label-teacher", world / "moved.pth"))
    finally:
        (world / "moved.pth").rename(world / "teacher.pth")
    stored = ("--fkd-path", labels["fp16"], "--output-dir", tmp_path / "s2")
    assert "would do nothing" in refused(*train_flags(world, *stored, "--label-teacher", other))
    with pytest.raises(SystemExit):
        run_main(check, "--dataset", "cifar10", "--data", world / "run" / "images", *stored[:2],
                 "--label-teacher", other)
    assert "would do nothing" in capsys.readouterr().err
    monkeypatch.setattr("relabel.recipe.draws_sha256", lambda item: "another")
    assert "does not draw the crops" in refused(*train_flags(
        world, *flags[:2], "--output-dir", tmp_path / "s3"))


CODE = """from torch import nn


def net(num_classes):
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, num_classes))
"""


def test_a_teacher_of_code_runs_where_it_is_named_and_not_once_it_is_edited(world, tmp_path):
    file = tmp_path / "n.py"
    file.write_text(CODE)
    torch.manual_seed(0)
    layers = (torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 10))
    torch.save(torch.nn.Sequential(*layers).state_dict(), tmp_path / "t.pth")
    labels = ("--fkd-path", tmp_path / "labels")
    run_main(*relabel_flags(world, "--epochs", 1, "-b", 8, "--codec", "none", *labels,
                            "--teacher", tmp_path / "t.pth", "--arch", f"{file}:net"))
    flags = train_flags(world, *labels, "--output-dir", tmp_path / "s")
    assert "type --label-arch PATH/n.py:net" in refused(*flags)
    run_main(*flags, "--label-arch", f"{file}:net")
    file.write_text(CODE.replace("AvgPool2d", "MaxPool2d"))  # the same weights, other logits
    assert "has been edited since these labels were begun" in refused(*flags, "--label-arch", f"{file}:net")


def test_controls_repeat_labels_that_are_not_stored(world, tmp_path):
    """random_real of a run whose student learned from a recipe, in a folder of its own: it is one as well, of
    the same teacher, and not what the run has elsewhere."""
    run = tmp_path / "run"
    shutil.copytree(world / "run" / "images", run / "images")
    run_main(*relabel_flags(world, "--epochs", 1, "-b", 8, "--name", run))
    own = ("--name", run, "--fkd-path", run / "labels_none")
    run_main(*relabel_flags(world, "--epochs", 1, "-b", 8, "--codec", "none", *own))
    run_main(*train_flags(world, *own))
    run_main(random_real, "--dataset", "cifar10", "--name", run, "--real-data", world / "real",
             "--model", SMALL)
    results = json.loads((run / "random_real" / f"student_{SMALL}" / "results.json").read_text())
    assert results["protocol"]["labels"]["codec"] == "none"
    manifest = json.loads((run / "random_real" / "labels.manifest.json").read_text())["settings"]
    assert (run / "random_real" / manifest["teacher_sources"][0]).samefile(world / "teacher.pth")


def test_topk_is_refused_with_mse_and_uint8_is_not(world, labels, tmp_path):
    flags = ("--loss", "mse", "--output-dir", tmp_path / "s")
    assert "hold the logits of topk:3 alone" in refused(*train_flags(
        world, "--fkd-path", labels["topk:3"], *flags))
    for name in ("uint8", "none"):
        run_main(*train_flags(world, "--fkd-path", labels[name], *flags[:2], "--output-dir", tmp_path / name))


def test_two_processes_write_what_one_writes_and_lost_epochs_come_back(world, labels, tmp_path, monkeypatch):
    for name in (*STORED, "none"):
        root = tmp_path / labels[name].name
        packed = ["--packed"] * (name == "fp16")
        flags = relabel_flags(world, "--epochs", 2, "-b", 8, "--codec", name, *packed, "--fkd-path", root)
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank in "01":
            monkeypatch.setenv("RANK", rank)
            run_main(*flags)
        monkeypatch.delenv("WORLD_SIZE")
        monkeypatch.delenv("RANK")
        wanted = {path.name: path.read_bytes() for path in labels[name].iterdir()}
        assert {path.name: path.read_bytes() for path in root.iterdir()} == wanted
        for lost in ([] if name == "none" else [root / "epoch_0.labels"]):
            lost.unlink()
        run_main(*flags)
        assert {path.name: path.read_bytes() for path in root.iterdir()} == wanted


@pytest.mark.parametrize("flags, words", (
    (("--codec", "uint8", "--label-precision", "fp32"), "--label-precision fp32 contradicts"),
    (("--codec", "none", "--packed"), "--packed would do nothing"),
    (("--codec", "none", "--keep", 0.5), "leave --keep away"),
    (("--keep", 0.2), "of 2 epochs is none")))
def test_flags_that_contradict_each_other(world, tmp_path, flags, words):
    folder = ("--fkd-path", tmp_path / "l")
    assert words in refused(*relabel_flags(world, "--epochs", 2, "-b", 8, *folder, *flags))


@pytest.mark.parametrize("epochs", (3, 49, 300))
def test_keep_takes_the_part_that_its_refusal_proposes(epochs):
    flags = ("--dataset", "digits", "--epochs", str(epochs), "--keep")
    with pytest.raises(UserError, match="keep .* or more") as refusal:
        plan.check_codec(relabel.get_args([*flags, "0.001"]))
    part = re.search("keep ([0-9.]+) or more", str(refusal.value))[1]
    args = relabel.get_args([*flags, part])
    plan.check_codec(args)
    assert plan.num_epochs(args) == 1


def test_a_dry_run_tells_the_bytes_that_each_codec_takes(world, labels, tmp_path, capsys):
    run_main(*relabel_flags(world, "--epochs", 2, "-b", 8, "--codec", "topk:3", "--fkd-path", tmp_path / "l",
                            "--dry-run"))
    out = capsys.readouterr().out
    planned = json.loads(out[out.index("{"):])
    found = planned["bytes_by_codec"]
    for key, name in (("fp16, packed", "fp16"), ("uint8", "uint8"), ("topk:3", "topk:3"), ("none", "none")):
        assert found[key] == sum(path.stat().st_size for path in labels[name].iterdir())
    assert planned["bytes"] == found["topk:3"]


def test_another_codec_in_a_folder_is_refused(world, labels):
    flags = ("--epochs", 2, "-b", 8, "--fkd-path", labels["fp16"])
    assert "codec" in refused(*relabel_flags(world, *flags, "--codec", "uint8"))
    assert "layout" in refused(*relabel_flags(world, *flags))
    assert relabel.DEFAULTS["layout"] == "released"
