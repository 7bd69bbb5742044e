"""Bad input: one clear sentence (a UserError, which the scripts turn into exit code 2) before any work is done."""
import shutil

import pytest
import torch

from recover import recover
from relabel import relabel
from sre2l.data.datasets import DATASETS
from sre2l.nets.models import load_teacher
from sre2l.run.errors import UserError
from squeeze import squeeze
from tests.helpers import SMALL, bare_checkpoint, noise_folder, refused, run_main, synthetic_folder
from tests.worlds import NAMES, common, recover_flags, teacher, train_flags
from validate import train
from report import summary


def test_missing_and_empty_folders(world, tmp_path):
    assert "there is no such folder" in refused(squeeze, *common(world, "s"), "--real-data", tmp_path / "nowhere")
    assert "holds train/ and val/" in refused(squeeze, *common(world, "s"), "--real-data", tmp_path)
    assert "holds train/ and val/" in refused(squeeze, *common(world, "s"), "--real-data", world / "real" / "val")  # never train on it
    (tmp_path / "train").mkdir()
    assert "find any class folder" in refused(squeeze, *common(world, "s"), "--real-data", tmp_path)
    (tmp_path / "empty" / "c0").mkdir(parents=True)
    assert "c0" in refused(relabel, *common(world), *teacher(world), "--data", tmp_path / "empty")
    assert "say where they are with --real-data" in refused(squeeze, "--dataset", "tiny-imagenet", "--name", tmp_path / "t")


def test_class_folders_that_do_not_match_the_data_set(world, tmp_path):
    noise_folder(tmp_path / "nine" / "train", NAMES[:9], 1)
    message = refused(squeeze, *common(world, "s"), "--real-data", tmp_path / "nine")
    assert "9 class folders, cifar10 has 10" in message
    synthetic_folder(tmp_path / "images", num_classes=10)
    shutil.rmtree(tmp_path / "images" / "new004")
    message = refused(relabel, *common(world), *teacher(world), "--data", tmp_path / "images")
    assert "9 class folders, the set has 10" in message and "number 4: 'new005' where 'new004' is expected" in message


def test_class_folders_that_do_not_match_the_teacher(tmp_path):
    """Squeeze remembers the class names; later stages compare real folders with them."""
    noise_folder(tmp_path / "real" / "train", NAMES, 2)
    noise_folder(tmp_path / "real" / "val", NAMES, 1)
    run_main(squeeze, *common(tmp_path), "--real-data", tmp_path / "real", "--arch", SMALL, "--epochs", 1, "-b", 10, "-j", 0)
    noise_folder(tmp_path / "other" / "val", [*NAMES[:9], "zebra"], 1)
    message = refused(recover, *common(tmp_path), "--val-dir", tmp_path / "other")
    assert "the first that differs is number 9: 'zebra' where 'c9' is expected" in message


def test_incomplete_set(world, tmp_path):
    shutil.copytree(world / "run" / "images", tmp_path / "images")
    (tmp_path / "images" / "new003" / "class003_id001.jpg").unlink()
    assert "new003/class003_id001.jpg: is missing" in refused(relabel, *common(world), *teacher(world), "--data", tmp_path / "images")


def test_unknown_architecture_gets_close_names(world):
    assert "did you mean resnet18" in refused(recover, *common(world, "new"), "--teacher", world / "teacher.pth", "--arch", "resnet19")
    assert "mobilenet_v2" in refused(*train_flags(world, "--model", "mobilenetv2"))


def test_teacher_without_batchnorm(world, tmp_path):
    bare_checkpoint(tmp_path / "s.pth", "squeezenet1_1")
    message = refused(recover, *common(world, "new"), "--teacher", tmp_path / "s.pth", "--arch", "squeezenet1_1")
    assert "squeezenet1_1 has no BatchNorm layer" in message


def test_teacher_of_another_shape(world, tmp_path):
    bare_checkpoint(tmp_path / "c100.pth", num_classes=100)
    message = refused(recover, *common(world, "new"), "--teacher", tmp_path / "c100.pth", "--arch", SMALL)
    assert "fc.weight is (100, 1024) in the checkpoint, (10, 1024)" in message and "--num-classes" in message
    assert "weights missing" in refused(recover, *common(world, "new"), "--teacher", world / "teacher.pth", "--arch", "mobilenet_v2")
    assert "no such checkpoint" in refused(recover, *common(world, "new"), "--teacher", tmp_path / "none.pth")
    assert "no teacher there" in refused(recover, *common(tmp_path, "new"))
    (tmp_path / "broken.pth").write_bytes((world / "teacher.pth").read_bytes()[:1000])
    assert "not a checkpoint that loads safely" in refused(recover, *common(world, "new"), "--teacher", tmp_path / "broken.pth")


def test_our_teacher_with_another_number_of_classes(world, tmp_path):
    bare_checkpoint(tmp_path / "t.pth", wrap=lambda w: {"format": "sre2l-teacher-1", "arch": SMALL, "stem": "torchvision", "num_classes": 10, "model": w})
    message = refused(recover, "--dataset", "cifar100", "--name", tmp_path / "r", "--teacher", tmp_path / "t.pth")
    assert "the teacher has 10 classes, cifar100 has 100" in message
    assert "checkpoint says" in refused(recover, *common(world, "new"), "--teacher", tmp_path / "t.pth", "--arch", "resnet18")


def test_a_teacher_at_chance_on_real_images_is_refused(world):
    """The class-order check: a head of zeros is a teacher whose classes mean nothing."""
    with torch.no_grad():
        constant = {k: torch.zeros_like(v) if k.startswith("fc") else v for k, v in torch.load(world / "teacher.pth").items()}
    torch.save(constant, world / "constant.pth")
    message = refused(recover, *common(world, "new"), "--teacher", world / "constant.pth", "--arch", SMALL, "--val-dir", world / "real")
    assert "top-1 10.00%" in message and "class order" in message


def test_numbers_out_of_range(world):
    assert "class 12 is out of range" in refused(*recover_flags(world, "--classes", "3,12"))
    assert "--ipc-start 1 is not below --ipc-end 1" in refused(*recover_flags(world, "--ipc-start", 1))
    assert "above --max-scale-crops" in refused(relabel, *common(world), *teacher(world), "--min-scale-crops", 0.5, "--max-scale-crops", 0.2)
    assert "--warmup-epochs 1 is not below --epochs 1" in refused(*train_flags(world, "--warmup-epochs", 1))


def test_unreadable_image_is_named_and_nothing_is_recorded_of_it(world, tmp_path):
    """The same command takes the images once they are repaired, which are others than the broken ones; it deletes no labels either."""
    shutil.copytree(world / "run" / "images", tmp_path / "images")
    file = tmp_path / "images" / "new007" / "class007_id001.jpg"
    whole = file.read_bytes()
    flags = (relabel, *common(world), *teacher(world), "--data", tmp_path / "images", "--fkd-path", tmp_path / "labels", "-j", 0, "--epochs", 1, "-b", 8)
    for again in ((), ("--overwrite",)):
        before = {path: path.read_bytes() for path in tmp_path.rglob("labels/*/*")}
        file.write_bytes(whole[:400])
        message = refused(*flags, *again)
        assert str(file) in message and "not a readable image" in message
        assert bool(before) == bool(again) and {path: path.read_bytes() for path in tmp_path.rglob("labels/*/*")} == before
        assert bool(before) == (tmp_path / "labels.manifest.json").exists()
        file.write_bytes(whole)
        run_main(*flags)


def test_another_data_set(world, tmp_path):
    """Of as many classes, which is how nothing else would tell: a teacher, images, labels; named before anything of the protocol is compared."""
    digits = {"format": "sre2l-teacher-1", "arch": SMALL, "stem": "torchvision", "num_classes": 10, "dataset": "digits"}
    bare_checkpoint(tmp_path / "t.pth", wrap=lambda weights: {**digits, "model": weights})
    for dry in ((), ("--dry-run",)):
        assert "was trained on digits, this run is of cifar10" in refused(recover, *common(world, "new"), "--teacher", tmp_path / "t.pth", *dry)
        other = ("--dataset", "digits", "--name", world / "run", *dry)
        assert "labels: was made for cifar10, this run is of digits" in refused(train, *other, "--epochs", 400)
    run_main(*recover_flags(world, name="images"))
    assert "images: was made for cifar10" in refused(relabel, "--dataset", "digits", "--name", world / "images", "--teacher", tmp_path / "t.pth")


def test_a_summary_of_a_run_without_its_controls(world, tmp_path):
    for folder, how in (("student_resnet18", "train.sh first"), ("student_resnet18_hard", "train.sh with --hard-labels first"),
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
    """Another learning rate is refused and named; another IPC range, log period or verifier is not a setting."""
    run_main(*recover_flags(world, name="grow"))
    message = refused(*recover_flags(world, "--lr", 0.5, "--print-period", 7, name="grow"))
    assert "lr: there 0.25, here 0.5" in message and "print_period" not in message
    run_main(*recover_flags(world, "--ipc-end", 2, "--print-period", 7, name="grow"))
    assert len(list((world / "grow" / "images").glob("new*/*.jpg"))) == 20
    assert "seed: there 0, here 1" in refused(relabel, *common(world), *teacher(world), "--epochs", 2, "-b", 8, "--seed", 1)


def test_a_verifier_needs_weights_of_the_data_set(world):
    assert "give --verifier-arch-path" in refused(*recover_flags(world, "--verifier"))
    with pytest.raises(UserError):
        recover.load_verifier(recover.get_args(["--dataset", "cifar10", "--verifier", "resnet18"]), None, "cpu")


def test_images_that_nobody_vouches_for_are_not_added_to(world):
    shutil.copytree(world / "run" / "images", world / "foreign" / "images")
    assert "no manifest stands beside it" in refused(*recover_flags(world, "--ipc-end", 3, name="foreign"))


def test_a_network_that_cannot_take_the_images(world):
    assert "alexnet cannot take images of 32x32 pixels" in refused(*train_flags(world, "--model", "alexnet"))


def test_padding_and_stems_out_of_range(world):
    assert "more than half of the images' 32 pixels" in refused(relabel, *common(world), *teacher(world), "--padding", 17)
    assert "torchvision's weights have torchvision's stem" in refused(recover, "--name", world / "i", "--stem", "conv3x3")


@pytest.mark.parametrize("stage", (recover, relabel))
def test_a_dry_run_opens_the_teacher_that_is_there(stage, world, tmp_path, capsys):
    """One that does not fit, is broken or is missing is named before anything is begun; one that is still to be trained is not asked for."""
    flags = (stage, *common(world, "run" if stage is relabel else "plan"), *(("--fkd-path", tmp_path / "labels") if stage is relabel else ()), "--dry-run")
    run_main(*flags, *teacher(world))
    assert load_teacher(DATASETS["cifar10"], world / "teacher.pth", SMALL).sha256 in capsys.readouterr().out
    bare_checkpoint(tmp_path / "c100.pth", num_classes=100)
    assert "fc.weight is (100, 1024) in the checkpoint" in refused(*flags, "--teacher", tmp_path / "c100.pth", "--arch", SMALL)
    assert "no such checkpoint" in refused(*flags, "--teacher", tmp_path / "none.pth")
    run_main(*flags)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "teacher.pth").write_bytes(b"")
    assert "not a checkpoint that loads safely" in refused(*flags, "--name", tmp_path)
    if stage is recover:
        bare_checkpoint(tmp_path / "s.pth", "squeezenet1_1")
        assert "has no BatchNorm layer" in refused(*flags, "--teacher", tmp_path / "s.pth", "--arch", "squeezenet1_1")
