"""The worlds that stress/damage.py breaks: one that four stages made, and one like the published folders.

The first is as tiny as they go; the second has no records."""
import contextlib
import os
import shutil
from unittest import mock

import numpy as np
import torch

import squeeze.squeeze as squeeze
from recover import recover
from relabel import relabel
from sre2l.data.augment import draw_crops, draw_mix, unit_rng
from sre2l.data.label_files import LabelBatch
from sre2l.data.loader import Batches
from sre2l.run.output import OutputFolder
from tests.helpers import SMALL, noise_folder, run_main, synthetic_folder, write_label_batch
from validate import train

CLASSES = 3
PER_CLASS = 2
BATCH = 4
EPOCHS = 2
NAMES = [f"c{i}" for i in range(CLASSES)]
STUDENT = f"student_{SMALL}"
CODED = ("fp16", "uint8", "topk:2", "none")  # what the labels of further worlds are stored in, packed
RELEASED = {"num_classes": 10, "ipc": 10, "batch": 50, "epochs": 2}


def stages(root, run, codec=""):
    """The commands of the run folder `run`, by name: (module, flags).

    root: where the real images are; codec: of the labels, "" for files as released."""
    common = ("--dataset", "cifar10", "--num-classes", CLASSES, "--name", run, "--device", "cpu")
    training = (*common, "-j", 0, "--eval-every", 1)
    coded = [*(["--codec", codec] if codec else []), *(["--packed"] if codec == "fp16" else [])]
    return {
        "squeeze": (squeeze, *training, "--real-data", root / "real", "--arch", SMALL, "--epochs", 2, "-b", 9,
                    "--lr", 0.01),
        "recover": (recover, *common, "--iteration", 2, "--ipc-end", PER_CLASS, "--batch-size", CLASSES,
                    "--no-crop-flip", "--jitter", 4),
        "relabel": (relabel, *common, "--epochs", EPOCHS, "-b", BATCH, "-j", 0, *coded),
        "validate": (train, *training, "--val-dir", root / "real", "--model", SMALL, "--epochs", EPOCHS,
                     "--gradient-accumulation-steps", 1, "--adamw-lr", 0.001)}


@contextlib.contextmanager
def quiet():
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


def make_world(root):
    """Real images and the results of all four stages in root/run; in root/other those of another seed.

    -> root."""
    noise_folder(root / "real" / "train", NAMES, 3)
    noise_folder(root / "real" / "val", NAMES, 2, seed=1)
    for name in ("run", "other"):
        for command in stages(root, root / name).values():
            seed = ("--seeds" if command[0] is train else "--seed", int(name == "other"))
            with quiet():
                if command[0] is recover:
                    stop_early(root / name, *command, *seed)
                run_main(*command, *seed)
    return root


def make_coded(world, root, codec):
    """The same teachers and images, with labels in another codec and a student of theirs -> root."""
    root.mkdir()
    (root / "real").symlink_to(world / "real")
    for name in ("run", "other"):
        shutil.copytree(world / name, root / name, ignore=shutil.ignore_patterns("labels*", "student*"))
        commands = stages(root, root / name, codec)
        with quiet():
            run_main(*commands["relabel"], "--seed", int(name == "other"))
            run_main(*commands["validate"], "--seeds", int(name == "other"))
    return root


def stop_early(run, *command):
    """Recover until its images are to be written, as if killed then; run/stopped keeps what it leaves."""
    with mock.patch.object(OutputFolder, "write", side_effect=KeyboardInterrupt):
        with contextlib.suppress(KeyboardInterrupt):
            run_main(*command, "--save-every-sec", 0)
    (run / "stopped").mkdir()
    for path in run.glob("images.*"):
        shutil.copy(path, run / "stopped" / path.name)


def make_released(root):
    """Images and labels as the published ones lie, whose logits know the classes of their images -> root."""
    num_classes, ipc, size, epochs = RELEASED.values()
    synthetic_folder(root / "images", num_classes, ipc, size=16)
    classes = torch.arange(num_classes).repeat_interleave(ipc)
    for batch in Batches(num_classes * ipc, size, 42, epochs):
        rng = unit_rng(0, batch.epoch, batch.index)
        mix = draw_mix("cutmix", 1.0, size, 32, rng)
        logits = torch.from_numpy(rng.standard_normal((size, num_classes), dtype=np.float32))
        logits[torch.arange(size), classes[batch.rows]] += 4
        crops = draw_crops(np.full((size, 2), 32), "padded", None, 4, False, rng)
        write_label_batch(root / "labels", batch.epoch, batch.index, LabelBatch(crops, mix, logits.half()))
    return root


def copy_run(world, target, copied):
    """A copy of the run's outputs whose names begin so, with links to the others, but for a student, which a
    stage may write -> target."""
    target.mkdir()
    for path in (world / "run").iterdir():
        if path.name.startswith(copied):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, target / path.name)
        elif not path.name.startswith("student"):
            (target / path.name).symlink_to(path)
    return target


def copy_stopped(world, target):
    """A copy of what a killed recover left, with a link to its teacher -> target."""
    shutil.copytree(world / "run" / "stopped", target)
    (target / "teacher").symlink_to(world / "run" / "teacher")
    return target
