"""Bad input: one clear sentence before any work is done (a UserError, of which the scripts make exit 2)."""
import shutil

import pytest
import torch

from recover import recover
from recover.watch import load_verifier
from relabel import relabel
from report import summary
from squeeze import squeeze
from sre2l.data.datasets import DATASETS
from sre2l.nets.teacher import load_teacher
from sre2l.run.errors import UserError
from tests.helpers import SMALL, bare_checkpoint, noise_folder, refused, run_main, synthetic_folder
from tests.worlds import (
    NAMES,
    common,
    recover_flags,
    relabel_flags,
    squeeze_flags,
    teacher,
    train_flags,
)
from validate import train


def test_missing_and_empty_folders(world, tmp_path):
    flags = (squeeze, *common(world, "s"), "--real-data")
    assert "there is no such folder" in refused(*flags, tmp_path / "nowhere")
    assert "holds train/ and val/" in refused(*flags, tmp_path)
    assert "holds train/ and val/" in refused(*flags, world / "real" / "val")  # never train on it
    (tmp_path / "train").mkdir()
    assert "find any class folder" in refused(*flags, tmp_path)
    (tmp_path / "empty" / "c0").mkdir(parents=True)
    assert "c0" in refused(*relabel_flags(world, "--data", tmp_path / "empty"))
    nowhere = ("--dataset", "tiny-imagenet", "--name", tmp_path / "t")
    assert "say where they are with --real-data" in refused(squeeze, *nowhere)


def test_class_folders_that_do_not_match_the_data_set(world, tmp_path):
    noise_folder(tmp_path / "nine" / "train", NAMES[:9], 1)
    message = refused(squeeze, *common(world, "s"), "--real-data", tmp_path / "nine")
    assert "9 class folders, cifar10 has 10" in message
    images = synthetic_folder(tmp_path / "images")
    shutil.rmtree(images / "new004")
    message = refused(*relabel_flags(world, "--data", images))
    assert "9 class folders, the set has 10" in message
    assert "number 4: 'new005' where 'new004' is expected" in message


def test_class_folders_that_do_not_match_the_teacher(world, tmp_path):
    """Squeeze remembers the class names; later stages compare real folders with them."""
    run_main(*squeeze_flags(world, name=tmp_path / "run"))
    noise_folder(tmp_path / "other" / "val", [*NAMES[:9], "zebra"], 1)
    message = refused(recover, *common(tmp_path), "--val-dir", tmp_path / "other")
    assert "the first that differs is number 9: 'zebra' where 'c9' is expected" in message


STAGES_WITH_A_TEACHER = ((recover, ()), (recover, ("--dry-run",)), (relabel, ("--dry-run",)))


@pytest.mark.parametrize("stage, dry", STAGES_WITH_A_TEACHER)
def test_a_teacher_that_does_not_fit_is_broken_or_is_missing_is_named(stage, dry, world, tmp_path):
    """Before anything is begun, and by a dry run too."""
    flags = (stage, *common(world, "run" if stage is relabel else "new"), *dry, "--teacher")
    if stage is relabel:
        flags = (*flags[:-1], "--fkd-path", tmp_path / "labels", "--teacher")
    bare_checkpoint(tmp_path / "c100.pth", num_classes=100)
    message = refused(*flags, tmp_path / "c100.pth", "--arch", SMALL)
    assert "fc.weight is (100, 1024) in the checkpoint, (10, 1024)" in message and "--num-classes" in message
    assert "weights missing" in refused(*flags, world / "teacher.pth", "--arch", "mobilenet_v2")
    assert "no such checkpoint" in refused(*flags, tmp_path / "none.pth")
    for size in (0, 1000):
        (tmp_path / "broken.pth").write_bytes((world / "teacher.pth").read_bytes()[:size])
        assert "not a checkpoint that loads safely" in refused(*flags, tmp_path / "broken.pth")
    if stage is recover:
        bare_checkpoint(tmp_path / "s.pth", "squeezenet1_1")
        message = refused(*flags, tmp_path / "s.pth", "--arch", "squeezenet1_1")
        assert "squeezenet1_1 has no BatchNorm layer" in message


@pytest.mark.parametrize("stage", (recover, relabel))
def test_a_dry_run_opens_the_teacher_that_is_there(stage, world, tmp_path, capsys):
    """One that is still to be trained is not asked for, except by a run."""
    assert "no teacher there" in refused(recover, *common(tmp_path, "new"))
    flags = (stage, *common(world, "run" if stage is relabel else "plan"), "--dry-run")
    if stage is relabel:
        flags = (*flags, "--fkd-path", tmp_path / "labels")
    run_main(*flags, *teacher(world))
    assert load_teacher(DATASETS["cifar10"], world / "teacher.pth", SMALL).sha256 in capsys.readouterr().out
    run_main(*flags)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "teacher.pth").write_bytes(b"")
    assert "not a checkpoint that loads safely" in refused(*flags, "--name", tmp_path)


def our_teacher(path, **values):
    """A checkpoint as squeeze writes it, with fresh weights -> path."""
    facts = {"format": "sre2l-teacher-1", "arch": SMALL, "stem": "torchvision", "num_classes": 10, **values}
    return bare_checkpoint(path, wrap=lambda weights: {**facts, "model": weights})


def test_our_teacher_with_another_number_of_classes(world, tmp_path):
    path = our_teacher(tmp_path / "t.pth")
    message = refused(recover, "--dataset", "cifar100", "--name", tmp_path / "r", "--teacher", path)
    assert "the teacher has 10 classes, cifar100 has 100" in message
    assert "checkpoint says" in refused(*recover_flags(world, "--teacher", path, "--arch", "resnet18"))


def test_a_teacher_at_chance_on_real_images_is_refused(world):
    """The class-order check: a head of zeros is a teacher whose classes mean nothing."""
    weights = torch.load(world / "teacher.pth")
    constant = {k: torch.zeros_like(v) if k.startswith("fc") else v for k, v in weights.items()}
    torch.save(constant, world / "constant.pth")
    flags = ("--teacher", world / "constant.pth", "--val-dir", world / "real")
    message = refused(*recover_flags(world, *flags))
    assert "top-1 10.00%" in message and "class order" in message


def test_names_and_numbers_that_do_not_fit(world):
    scales = ("--min-scale-crops", 0.5, "--max-scale-crops", 0.2)
    for words, flags in (
            ("did you mean resnet18", recover_flags(world, "--arch", "resnet19")),
            ("class 12 is out of range", recover_flags(world, "--classes", "3,12")),
            ("--ipc-start 1 is not below --ipc-end 1", recover_flags(world, "--ipc-start", 1)),
            ("torchvision's weights have torchvision's stem",
             (recover, "--name", world / "i", "--stem", "conv3x3")),
            ("above --max-scale-crops", relabel_flags(world, *scales)),
            ("more than half of the images' 32 pixels", relabel_flags(world, "--padding", 17)),
            ("mobilenet_v2", train_flags(world, "--model", "mobilenetv2")),
            ("alexnet cannot take images of 32x32 pixels", train_flags(world, "--model", "alexnet")),
            ("--warmup-epochs 1 is not below --epochs 1", train_flags(world, "--warmup-epochs", 1))):
        assert words in refused(*flags)


def test_unreadable_image_is_named_and_nothing_is_recorded_of_it(world, tmp_path):
    """The same command takes the images once they are repaired. It deletes no labels either."""
    shutil.copytree(world / "run" / "images", tmp_path / "images")
    file = tmp_path / "images" / "new007" / "class007_id001.jpg"
    whole = file.read_bytes()
    flags = relabel_flags(world, "--data", tmp_path / "images", "--fkd-path", tmp_path / "labels",
                          "--epochs", 1, "-b", 8)
    for again in ((), ("--overwrite",)):
        before = {path: path.read_bytes() for path in tmp_path.rglob("labels/*/*")}
        file.write_bytes(whole[:400])
        message = refused(*flags, *again)
        assert str(file) in message and "not a readable image" in message
        assert bool(before) == bool(again)
        assert {path: path.read_bytes() for path in tmp_path.rglob("labels/*/*")} == before
        assert bool(before) == (tmp_path / "labels.manifest.json").exists()
        file.write_bytes(whole)
        run_main(*flags)


def test_another_data_set(world, tmp_path):
    """Of as many classes: a teacher, images, labels; named before anything of the protocol is compared."""
    path = our_teacher(tmp_path / "t.pth", dataset="digits")
    for dry in ((), ("--dry-run",)):
        message = refused(recover, *common(world, "new"), "--teacher", path, *dry)
        assert "was trained on digits, this run is of cifar10" in message
        other = ("--dataset", "digits", "--name", world / "run", *dry)
        message = refused(train, *other, "--epochs", 400)
        assert "labels: was made for cifar10, this run is of digits" in message
    run_main(*recover_flags(world, name="images"))
    flags = ("--dataset", "digits", "--name", world / "images", "--teacher", path)
    assert "images: was made for cifar10" in refused(relabel, *flags)


def test_a_summary_of_a_run_without_its_controls(world, tmp_path):
    for folder, how in (("student_resnet18", "train.sh first"),
                        ("student_resnet18_hard", "train.sh with --hard-labels first"),
                        ("random_real/student_resnet18", "random_real.sh first")):
        assert how in refused(summary, "--dataset", "cifar10", "--name", tmp_path)
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "results.json").write_text("{}")


def test_gpu_asked_for_and_none_there(world):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "this machine has 0 GPUs" in refused(*train_flags(world, "--device", "cuda"))
    assert "choose auto, cpu, cuda" in refused(*train_flags(world, "--device", "tpu"))


def test_an_output_folder_keeps_its_settings(world, tmp_path):
    """Another learning rate is refused and named; IPC range, log period and verifier are not settings."""
    run_main(*recover_flags(world, name="grow"))
    message = refused(*recover_flags(world, "--lr", 0.5, "--print-period", 7, name="grow"))
    assert "lr: there 0.25, here 0.5" in message and "print_period" not in message
    assert "--overwrite" in message
    run_main(*recover_flags(world, "--ipc-end", 2, "--print-period", 7, name="grow"))
    assert len(list((world / "grow" / "images").glob("new*/*.jpg"))) == 20
    flags = ("--epochs", 2, "-b", 8, "--seed", 1)
    assert "seed: there 0, here 1" in refused(*relabel_flags(world, *flags))


def test_a_verifier_needs_weights_of_the_data_set(world):
    for dry in ((), ("--dry-run",)):  # run.sh asks before it trains a teacher
        assert "give --verifier-arch-path" in refused(*recover_flags(world, "--verifier", *dry))
        assert "no such file" in refused(*recover_flags(world, "--verifier-arch-path", "gone.pth", *dry))
    args = recover.get_args(["--dataset", "cifar10", "--verifier", "resnet18"])
    with pytest.raises(UserError):
        load_verifier(args, None, "cpu")
