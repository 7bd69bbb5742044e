"""A run folder as the stages leave it, of noise and invented numbers."""
import json

import numpy as np

from recover.pictures import save_snapshot
from sre2l.data.datasets import DATASETS
from sre2l.run.files import write_json
from tests.helpers import synthetic_folder

TRAIN = ("--dataset digits --model resnet18 --epochs 60 --gradient-accumulation-steps 1 -T 20 "
         "--adamw-lr 2e-3 --adamw-weight-decay 0.01 --workers 0")


def results(top1, std, num_images, batch_size=50, device="cpu, 2 threads"):
    """results.json of three students."""
    protocol = {"epochs": 60, "schedule": "cosine per epoch", "optimizer": {"name": "AdamW", "lr": 0.002},
                "loss": "KL", "temperature": 20.0,
                "precision": "fp32",
                "labels": {"num_images": num_images, "batch_size": batch_size, "mix": "cutmix"}}
    return {"top1": {"mean": top1, "std": std}, "seeds": {"0": {}, "1": {}, "2": {}}, "protocol": protocol,
            "versions": {"device": device}, "image_bytes": 1234, "label_bytes": 5_678_901,
            "seconds": {"squeeze": 40.4, "recover": None, "validate": 99.6}}


def log(time, command, versions):
    """What RunLog writes at a start: command, arguments, versions."""
    return f'{time}  {command}\n{{"device": "auto"}}\n{json.dumps(versions)}\n'


def add_student(run, folder, command, time, num_images):
    (run / folder).mkdir(parents=True)
    versions = {"python": "3.12.3", "torch": "2.15", "device": "cpu, 2 threads"}
    (run / folder / "log.txt").write_text(log(time, f"{command} --name {run}", versions))
    write_json(run / folder / "results.json", results(50.0 + len(folder), 1.25, num_images))


def synthetic_run(run, dataset="digits", ipc=2, classes=10, size=None):
    """-> the run folder. Snapshot k shows at (k, class) an image of the one grey level 20 k + class."""
    size = size or DATASETS[dataset].size
    synthetic_folder(run / "images", classes, ipc, size)
    write_json(run / "images.args.json", {"teacher": str(run / "teacher" / "teacher.pth"), "name": str(run)})
    settings = {"classes": list(range(classes)), "batch_size": 100, "size": size}
    write_json(run / "images.manifest.json", {"settings": settings})
    terms = [{"unit": unit, "iteration": t, "ce": 9 / (t + 1), "r_bn_bn": 90 / (t + 1), "seconds": 0.5}
             for t in range(0, 100, 10) for unit in (0, 1)]
    (run / "images.metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in terms))
    labels = [i % classes for i in range(100)]
    for k in range(4):
        batch = np.stack([np.full((size, size, 3), 20 * k + label % 20, np.uint8) for label in labels])
        save_snapshot(batch, run / "images.snapshots", 10 * k)

    write_json(run / "labels.manifest.json", {"settings": {"measured_top1": 98.7, "teacher": {"top1": 1.0}}})
    (run / "teacher").mkdir()
    (run / "teacher" / "metrics.jsonl").write_text(
        '{"epoch": 1, "loss": 2.0, "seconds": 1.0}\n{"epoch": 2, "top1": 90.5, "seconds": 1.5}\n')
    (run / "teacher" / "log.txt").write_text('{"python": "3.11.9", "device": "cpu, 1 threads"}\n'
                                             '{"python": "3.12.3", "device": "NVIDIA H200", "threads": 2}\n')
    train = f"/home/someone/sre2l/validate/train.py {TRAIN}"
    add_student(run, "student_resnet18", train, "2026-11-23 10:00:06", classes * ipc)
    add_student(run, "student_resnet18_hard", f"{train} --hard-labels", "2026-11-23 10:00:01", classes * ipc)
    add_student(run, "random_real/student_resnet18", train, "2026-11-23 10:00:08", classes * ipc)
    add_student(run, "picked_real/student_resnet18", train, "2026-11-23 10:00:09", classes * ipc)
    return run
