"""convert.sh: labels in another codec or layout are those that relabel writes, or it says what is lost."""
import json
import shutil

import pytest
import torch

from relabel import check, convert
from sre2l.data.label_files import read_label_batch
from sre2l.run.output import recorded
from tests.helpers import refused, run_main
from tests.worlds import relabel_flags

CIFAR = ("--dataset", "cifar10")


def flags(source, target, *more):
    return convert, *CIFAR, "--fkd-path", source, "--output-dir", target, *more


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def settings_of(root):
    return recorded(f"{root}.manifest.json")


def relabelled(world, root, *codec):
    run_main(*relabel_flags(world, "--epochs", 2, "-b", 8, "--fkd-path", root, *codec))
    return root


@pytest.mark.parametrize("codec, layout", (("fp16", ["--packed"]), ("uint8", []), ("topk:3", [])))
def test_a_conversion_of_fp16_is_what_relabel_writes(world, tmp_path, codec, layout, capsys):
    wanted = relabelled(world, tmp_path / "wanted", "--codec", codec, *layout)
    run_main(*flags(world / "run" / "labels", tmp_path / "found", "--codec", codec, *layout))
    assert ("nothing is lost" in capsys.readouterr().out) == (codec == "fp16")
    assert contents(tmp_path / "found") == contents(wanted)
    assert settings_of(tmp_path / "found") == settings_of(wanted)
    # relabel goes on with it.
    run_main(*relabel_flags(world, "--epochs", 3, "-b", 8, "--fkd-path", tmp_path / "found", "--codec", codec,
                            *layout))
    assert len(contents(tmp_path / "found")) == 3
    run_main(check, *CIFAR, "--data", world / "run" / "images", "--fkd-path", tmp_path / "found")


def test_packed_and_back_is_bit_exact_and_a_lost_file_comes_back(world, tmp_path):
    source = world / "run" / "labels"
    run_main(*flags(source, tmp_path / "packed", "--packed"))
    run_main(*flags(tmp_path / "packed", tmp_path / "back", "--codec", "fp16"))
    assert contents(tmp_path / "back") == contents(source)
    assert settings_of(tmp_path / "back") == settings_of(source)
    (tmp_path / "packed" / "epoch_1.labels").unlink()
    before = contents(tmp_path / "packed")
    run_main(*flags(source, tmp_path / "packed", "--packed"))
    assert contents(tmp_path / "packed").keys() == {*before, "epoch_1.labels"}


def test_published_labels_are_converted_without_records(world, tmp_path, capsys):
    source = shutil.copytree(world / "run" / "labels", tmp_path / "published")
    for codec in ("uint8", "fp16"):
        target = tmp_path / codec
        run_main(*flags(source, target, "--codec", codec, "--packed"))
        assert "done" in capsys.readouterr().out and not (tmp_path / f"{codec}.manifest.json").exists()
        for epoch in range(2):
            one, other = (read_label_batch(root, epoch, 2) for root in (source, target))
            assert torch.allclose(one.logits.float(), other.logits.float(), atol=0.05)
            assert torch.equal(one.crops.boxes, other.crops.boxes)
        run_main(check, *CIFAR, "--name", tmp_path / "none", "--fkd-path", target)
    (target / "notes.txt").write_text("x")
    assert "none of these labels" in refused(*flags(source, target, "--packed"))


def test_nothing_is_written_over_the_labels_or_over_recorded_ones(world, tmp_path):
    """--overwrite would delete them first; packed files of a published set would be replaced one by one."""
    run_main(*flags(world / "run" / "labels", tmp_path / "mine", "--codec", "uint8"))
    published = shutil.copytree(tmp_path / "mine", tmp_path / "published")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    before = contents(tmp_path)
    to_fp16 = ("--codec", "fp16", "--packed")
    for target in ("mine", "link"):
        words = refused(*flags(tmp_path / "mine", tmp_path / target, *to_fp16, "--overwrite"))
        assert "are the labels that are to be converted" in words
    assert "that are to be converted" in refused(*flags(published, published, *to_fp16))
    inside = flags(tmp_path / "mine", tmp_path / "mine" / "sub", *to_fp16)
    assert "is within the labels" in refused(*inside)
    assert "holds labels with a manifest" in refused(*flags(published, tmp_path / "mine", *to_fp16))
    assert contents(tmp_path) == before


def test_what_was_decoded_is_not_taken_for_what_relabel_writes(world, tmp_path, capsys):
    run_main(*flags(world / "run" / "labels", tmp_path / "small", "--codec", "uint8"))
    said = capsys.readouterr().out
    assert "L1 distance" in said and "40 rows" in said
    run_main(*flags(tmp_path / "small", tmp_path / "large", "--codec", "fp16"))
    assert settings_of(tmp_path / "large")["decoded_from"] == "uint8"
    assert "decoded_from" in refused(*relabel_flags(world, "--epochs", 2, "-b", 8, "--fkd-path",
                                                    tmp_path / "large"))


def test_what_cannot_be_is_refused(world, tmp_path):
    source = world / "run" / "labels"
    top = tmp_path / "top"
    run_main(*flags(source, top, "--codec", "topk:3"))
    for codec, words in (("fp16", "logits of topk:3 alone"), ("topk:4", "logits of topk:3 alone"),
                         ("topk:3", "say another"), ("none", "another --fkd-path")):
        assert words in refused(*flags(top, tmp_path / "x", "--codec", codec))
    many = ("--codec", "topk:300")
    assert "fp16 stores all" in refused(*flags(source, tmp_path / "x", *many))
    assert "fp16 stores all" in refused(*relabel_flags(world, "--fkd-path", tmp_path / "x", *many))
    run_main(*flags(top, tmp_path / "less", "--codec", "topk:2"))
    run_main(*flags(source, tmp_path / "less2", "--codec", "topk:2"))
    assert contents(tmp_path / "less") == contents(tmp_path / "less2")
    assert settings_of(tmp_path / "less") == settings_of(tmp_path / "less2")


def test_a_dry_run_tells_folder_and_bytes_and_a_second_run_that_all_is_there(world, tmp_path, capsys):
    """Whatever codec the labels are in, the bytes are those of the new one."""
    source = shutil.copytree(world / "run" / "labels", tmp_path / "labels")
    for suffix in (".manifest.json", ".sha256"):
        shutil.copy(world / "run" / f"labels{suffix}", tmp_path / f"labels{suffix}")
    for name, codec, *packed in (("labels_uint8", "uint8"), ("labels_uint8_fp16_packed", "fp16", "--packed")):
        again = (convert, *CIFAR, "--fkd-path", source, "--codec", codec, *packed)
        run_main(*again, "--dry-run")
        plan = json.loads(capsys.readouterr().out)
        run_main(*again)
        assert "all of it was there already" not in capsys.readouterr().out
        assert plan["output"] == str(tmp_path / name)
        assert plan["bytes"] == sum(map(len, contents(tmp_path / name).values()))
        assert plan["bytes_there"] == sum(map(len, contents(source).values()))
        run_main(*again)
        assert "all of it was there already" in capsys.readouterr().out
        source = tmp_path / name
