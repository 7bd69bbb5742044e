"""Labels that do not belong to the images, to the protocol or to the records: one sentence, no training."""
import json
import shutil

from tests.helpers import noise_folder, refused, run_main, synthetic_folder
from tests.worlds import NAMES, relabel_flags, train_flags


def test_labels_for_other_images(world, tmp_path):
    synthetic_folder(tmp_path / "images", seed=7)
    assert "images with other contents" in refused(*train_flags(world, "--train-dir", tmp_path / "images"))
    synthetic_folder(tmp_path / "more", ipc=3)
    assert "labels for 20 images" in refused(*train_flags(world, "--train-dir", tmp_path / "more"))


def test_a_protocol_that_the_labels_do_not_have(world):
    steps = ("--gradient-accumulation-steps", 3)
    mix = ("--mix-type", "mixup")
    for dry in ((), ("--dry-run",)):
        flags = train_flags(world, "--epochs", 3, *dry)
        assert "labels for 2 epochs, --epochs asks for 3" in refused(*flags)
    assert "labels for batches of 8, --batch-size says 16" in refused(*train_flags(world, "--batch-size", 16))
    assert "does not divide the batch of 8" in refused(*train_flags(world, *steps))
    assert "labels with mix cutmix, --mix-type says mixup" in refused(*train_flags(world, *mix))
    assert "order_seed 42, this run has 1" in refused(*train_flags(world, "--fkd-seed", 1))
    assert "input_size 32, this run has 64" in refused(*train_flags(world, "--input-size", 64))


def copy_labels(world, root, records=(".manifest.json", ".sha256")):
    """The world's labels with these records -> the copy."""
    shutil.copytree(world / "run" / "labels", root / "labels")
    for suffix in records:
        shutil.copy(world / "run" / f"labels{suffix}", root / f"labels{suffix}")
    return root / "labels"


def label_bytes(labels):
    return {path: path.read_bytes() for path in labels.rglob("*.tar")}


def test_a_label_folder_grows_by_epochs_and_fewer_forget_nothing(world, tmp_path):
    labels = tmp_path / "labels"
    flags = relabel_flags(world, "-b", 10, "--fkd-path", labels)
    run_main(*flags, "--epochs", 1)
    before = label_bytes(labels)
    run_main(*flags, "--epochs", 2)
    grown = label_bytes(labels)
    assert len(grown) == 4 and {path: grown[path] for path in before} == before
    recorded = (tmp_path / "labels.sha256").read_text()
    for epochs in (2, 1):
        run_main(*flags, "--epochs", epochs)
        assert (tmp_path / "labels.sha256").read_text() == recorded
        assert json.loads((tmp_path / "labels.manifest.json").read_text())["settings"]["epochs"] == 2


def test_a_changed_label_file_is_found_by_its_hash(world, tmp_path):
    """Two label files of equal shape exchanged: nothing in them tells, the recorded hash does."""
    labels = copy_labels(world, tmp_path)
    shutil.copy(labels / "epoch_1" / "batch_0.tar", labels / "epoch_0" / "batch_1.tar")
    message = refused(*train_flags(world, "--fkd-path", labels, "--output-dir", tmp_path / "student"))
    assert "epoch_0/batch_1.tar" in message and "sha256" in message


def test_relabel_leaves_published_labels_alone(world, tmp_path):
    labels = copy_labels(world, tmp_path, records=())
    before = label_bytes(labels)
    message = refused(*relabel_flags(world, "--epochs", 1, "-b", 8, "--fkd-path", labels))
    assert "no manifest stands beside it" in message
    assert label_bytes(labels) == before


def test_a_fault_found_in_another_process_is_one_sentence(world, tmp_path):
    """With worker processes too: the message itself, not the traceback of a process."""
    labels = copy_labels(world, tmp_path)
    broken = labels / "epoch_1" / "batch_1.tar"
    broken.write_bytes(b"")
    flags = ("--fkd-path", labels, "--output-dir", tmp_path / "s", "-j", 1, "--epochs", 2)
    message = refused(*train_flags(world, *flags))
    assert message.startswith(str(broken)) and len(message.splitlines()) == 1


def test_a_set_smaller_than_a_batch(world, tmp_path):
    """20 images labelled with batches of 64 are a set of one short batch; the manifest says 64."""
    flags = ("--fkd-path", tmp_path / "labels")
    run_main(*relabel_flags(world, "-b", 64, "--epochs", 1, *flags))
    run_main(*train_flags(world, *flags, "--batch-size", 64, "--output-dir", tmp_path / "s"))
    results = json.loads((tmp_path / "s" / "results.json").read_text())
    assert results["protocol"]["labels"]["batch_size"] == 64
    assert results["protocol"]["val"]["num_images"] == 20


def test_another_validation_set_is_another_protocol(world, tmp_path):
    flags = ("--output-dir", tmp_path / "s")
    run_main(*train_flags(world, *flags))
    noise_folder(tmp_path / "val", NAMES, 3, seed=5)
    assert "val.sha256: there" in refused(*train_flags(world, *flags, "--val-dir", tmp_path / "val"))
