"""Pickles of strangers, none of which runs; half-downloaded weights; damage in a zip that torch misses."""
import argparse
import hashlib
import io
import pickle
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision

from relabel import relabel
from sre2l.data.datasets import DATASETS
from sre2l.data.label_files import read_fields, read_label_batch
from sre2l.data.real_images import read_real
from sre2l.nets.checkpoints import pretrained
from sre2l.nets.teacher import load_teacher
from sre2l.run.errors import UserError
from sre2l.run.safe_load import safe_load
from tests.helpers import SMALL, bare_checkpoint, refused
from tests.test_label_files import Trap, released_fields, rename_in_pickle, write_file
from tests.worlds import common, recover_flags, squeeze_flags, train_flags

CIFAR10 = DATASETS["cifar10"]


@pytest.mark.parametrize("legacy", (False, True))
def test_a_teacher_a_verifier_and_a_student_run_nothing(world, tmp_path, legacy):
    mark = tmp_path / "sprung"
    trap = tmp_path / "trap.pth"
    torch.save({"model": Trap(mark)}, trap, _use_new_zipfile_serialization=not legacy)
    for flags in ((*recover_flags(world), "--teacher", trap),
                  (*recover_flags(world), "--verifier", SMALL, "--verifier-arch-path", trap),
                  (relabel, *common(world), "--teacher", trap, "--arch", SMALL),
                  (*train_flags(world), "--evaluate", trap)):
        message = refused(*flags)
        assert str(trap) in message and "not a checkpoint that loads safely" in message
    assert not mark.exists()


def test_a_checkpoint_to_continue_from_runs_nothing(world, tmp_path):
    """checkpoint.pth of squeeze and of validate."""
    mark = tmp_path / "sprung"
    for folder, flags in (("run/teacher", squeeze_flags(world, name=tmp_path / "run")),
                          ("s/seed0", train_flags(world, "--output-dir", tmp_path / "s"))):
        (tmp_path / folder).mkdir(parents=True)
        trap = tmp_path / folder / "checkpoint.pth"
        torch.save({"model": Trap(mark)}, trap)
        assert f"{trap}: not a checkpoint that loads safely" in refused(*flags)
    assert not mark.exists()


def saved(value, **options):
    """The bytes of torch.save."""
    data = io.BytesIO()
    torch.save(value, data, **options)
    return data.getvalue()


def put_weights(folder, monkeypatch, data, name=None):
    """Put a file into torch's cache as torchvision's weights of SMALL, its sha256 in the name."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    name = name or f"net-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    weights = torchvision.models.get_model_weights(SMALL)
    # nobody listens on that port
    monkeypatch.setattr(weights, "url", property(lambda self: f"http://localhost:9/{name}"))
    file = folder / "checkpoints" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return file


def test_torchvisions_cached_weights_run_nothing_even_with_the_right_hash(tmp_path, monkeypatch):
    mark = tmp_path / "sprung"
    file = put_weights(tmp_path, monkeypatch, saved({"fc.weight": Trap(mark)}))
    with pytest.raises(UserError,
                       match="could not download or read torchvision's weights of shufflenet_v2_x0_5"):
        pretrained(SMALL)
    assert not mark.exists()
    with monkeypatch.context() as patch:  # what stands between the two
        patch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        torch.load(file, weights_only=False)
    assert mark.exists()


def test_torchvisions_cached_weights_load_whole_or_are_named(tmp_path, monkeypatch):
    """In the format of before torch 1.6 and as parameters, as torchvision's old ones are; then with a bit
    flipped, then cut short, then not there at all."""
    torch.manual_seed(1)
    network = torchvision.models.get_model(SMALL)
    data = saved(network.state_dict(keep_vars=True), _use_new_zipfile_serialization=False)
    file = put_weights(tmp_path, monkeypatch, data)
    found = pretrained(SMALL).state_dict()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
    for broken in (data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], data[:-1000], b""):
        put_weights(tmp_path, monkeypatch, broken, file.name)
        with pytest.raises(UserError,
                           match="as its name says: a broken or cut download; delete it") as caught:
            pretrained(SMALL)
        assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match="could not download or read"):
        pretrained(SMALL)


def test_every_classifiers_weights_have_a_hash_in_their_name():
    """What check_download relies on, for all of torchvision's IMAGENET1K_V1 files."""
    for arch in torchvision.models.list_models(module=torchvision.models):
        weights = torchvision.models.get_model_weights(arch).__members__.get("IMAGENET1K_V1")
        assert weights is None or re.search(r"-([0-9a-f]{8,})\.", weights.url.rpartition("/")[2]), arch


def test_cifars_pickles_are_not_opened_unless_their_md5_is_right(tmp_path):
    """torchvision checks every file before it unpickles one, also where nothing is downloaded."""
    mark = tmp_path / "sprung"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, _ in torchvision.datasets.CIFAR10.train_list + torchvision.datasets.CIFAR10.test_list:
        (folder / name).write_bytes(pickle.dumps(Trap(mark)))
    (folder / "batches.meta").write_bytes(pickle.dumps(Trap(mark)))
    for split in ("train", "val"):
        with pytest.raises(UserError, match="cifar10: torchvision could not load or download it"):
            read_real(CIFAR10, tmp_path, split)
    assert not mark.exists()


def test_flags_that_a_reference_script_saved_do_not_keep_its_checkpoint_out(tmp_path):
    """torchvision's reference scripts save an argparse.Namespace beside the weights."""
    path = bare_checkpoint(tmp_path / "t.pth",
                           wrap=lambda w: {"model": w, "args": argparse.Namespace(lr=0.1, device="cuda"),
                                           "epoch": 3})
    assert load_teacher(CIFAR10, path, SMALL).arch == SMALL


def test_published_label_files_load_in_several_threads_at_once(tmp_path):
    """Types registered around each load would be missing in one thread while another removes them."""
    path = write_file(tmp_path, released_fields())
    rename_in_pickle(path, "numpy.core.multiarray")
    with ThreadPoolExecutor(8) as pool:
        assert all(len(fields) == 6 for fields in pool.map(lambda _: read_fields(path), range(400)))


def zip_of(data, **changed):
    """A torch.save zip written anew, some attribute of its members changed."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as copy:
        for member in source.infolist():
            info = zipfile.ZipInfo(member.filename)
            for key, value in changed.items():
                setattr(info, key, value)
            copy.writestr(info, source.read(member))
    return target.getvalue()


def test_a_member_marked_as_a_folder_and_a_compressed_one():
    """torch reads nothing into a tensor for the first; the second may be a thousand times the file's size."""
    data = saved([torch.zeros(100_000)])
    assert torch.equal(safe_load("x", "label file", zip_of(data))[0], torch.zeros(100_000))
    for changed, why in (({"external_attr": 0x10}, "is marked as a folder"),
                         ({"compress_type": zipfile.ZIP_DEFLATED}, "more bytes than the file has")):
        with pytest.raises(UserError, match=why):
            safe_load("x", "label file", zip_of(data, **changed))


@pytest.mark.filterwarnings("ignore")
def test_tensors_whose_values_are_not_in_the_file(tmp_path):
    """A million rows of one value, a meta tensor, a sparse one, a nested one: no logits, no weights."""
    odd = (torch.zeros(1, 1).half().expand(10 ** 6, 10 ** 6), torch.zeros(5, 7, device="meta").half(),
           torch.zeros(5, 7).half().to_sparse(),
           torch.nested.nested_tensor([torch.zeros(7).half()] * 5))
    for value in odd:
        write_file(tmp_path, released_fields(logits=value))
        with pytest.raises(UserError, match="batch_0.tar"):
            read_label_batch(tmp_path, 0, 0)
        torch.save({"model": {"fc.weight": value}}, tmp_path / "t.pth")
        with pytest.raises(UserError, match="no network weights|loads safely"):
            load_teacher(CIFAR10, tmp_path / "t.pth", SMALL)
