"""The rows of the README's tables: what is published, and which folder of results/ holds our run. Another row is another line here."""
from dataclasses import dataclass
from pathlib import Path

from sre2l.run.files import read_json
from sre2l.run.log import read_metrics
from sre2l.run.paths import ROOT

RESULTS = ROOT / "results"
PUBLISHED = {  # (data set, student): {IPC: top-1 in percent, and its spread where one was given}, from the paper's tables
    ("imagenet1k", "resnet18"): {10: "21.3", 50: "46.8", 100: "52.8", 200: "57.0"},
    ("tiny-imagenet", "resnet18"): {50: "41.1 +- 0.4", 100: "49.7 +- 0.3"},
    ("tiny-imagenet", "resnet50"): {50: "42.2", 100: "51.2"},
    ("tiny-imagenet", "resnet101"): {50: "42.5", 100: "51.5"},
    ("cifar100", "resnet18"): {50: "49.4"}}
TEACHERS = {"imagenet1k": "69.76", "tiny-imagenet": "59.57", "cifar100": "78.72"}  # ResNet-18; Tiny-ImageNet's after 50 epochs


@dataclass(frozen=True)
class Row:
    """folder: of results/, may be missing; ipc: images per class, None for a row about the teacher alone; model: the student, or the
    teacher; note: what a reader must know beside the number."""
    folder: str
    dataset: str
    ipc: int | None
    model: str = "resnet18"
    note: str = ""

    @property
    def published(self):
        """The published top-1 as text, 'none' where there is none."""
        return PUBLISHED.get((self.dataset, self.model), {}).get(self.ipc, "none") if self.ipc else TEACHERS.get(self.dataset, "none")

    @property
    def path(self):
        return RESULTS / self.folder


@dataclass(frozen=True)
class Ablation:
    """A setting, or a few, varied. values: (as the table says it, folder of results/); sentence: what they tell."""
    dataset: str
    varied: str
    values: tuple
    sentence: str = ""


ROWS = (
    Row("digits_ipc1", "digits", 1),
    Row("digits_ipc10", "digits", 10),
    Row("cifar10_ipc10", "cifar10", None, note="25 epochs instead of 200, on an H200"),
    Row("cifar10_ipc10", "cifar10", 10, note="for two CPU cores: the student's stem has stride 2; teacher and images from an H200"),
    Row("cifar10_ipc50", "cifar10", 50, note="as at IPC 10: teacher and images from an H200, the student for CPU cores"),
    Row("tiny-imagenet_ipc50", "tiny-imagenet", None),
    Row("tiny-imagenet_ipc10", "tiny-imagenet", 10),
    Row("tiny-imagenet_ipc50", "tiny-imagenet", 50),
    Row("tiny-imagenet_ipc50", "tiny-imagenet", 50, "resnet50"),
    Row("tiny-imagenet_ipc50", "tiny-imagenet", 50, "mobilenet_v2"),
    Row("tiny-imagenet_ipc100", "tiny-imagenet", 100),
    Row("imagenet1k_ipc1", "imagenet1k", 1, "mobilenet_v2", "100 classes in one batch, MobileNetV2 as the teacher, 1000 iterations, r_bn 0.1, on one CPU core"),
    Row("imagenet1k_ipc50", "imagenet1k", 50),
)
BASE, RELEASED = "cifar10_ipc10", "published for CIFAR-100"
ABLATIONS = (
    Ablation("cifar10", "towards the released script", (
        ("ours", BASE), ("the student's 3x3 stem with stride 1 for 2", "cifar10_ipc10_stem"),
        ("`relabel --batch-statistics`", "cifar10_ipc10_bstat"), ("both", "cifar10_ipc10_released")),
             "the small stem and a teacher in eval mode cost four points each, and ten together"),
    Ablation("cifar10", "the same at IPC 50", (("ours", "cifar10_ipc50"), ("both", "cifar10_ipc50_released")),
             "13 points; others report 45 to 48 under other protocols"),
    Ablation("cifar10", "files of the images (`--seed 1`)", (("JPEG at quality 75", "cifar10_ipc10_seed1"), ("PNG (`--lossless`)", "cifar10_ipc10_seed1_png")),
             "the JPEG files were made of the PNG ones, and cost 2.5 points"),
    Ablation("cifar10", "set of images", (("`--seed 0`, H200, fp16", BASE), ("`--seed 1`, CPU, bf16", "cifar10_ipc10_seed1")),
             "3.5 points between two sets (other noise, machine and precision), so that smaller differences below tell nothing"),
    Ablation("cifar10", "crop and flip in recover (`--seed 1`)", ((f"no ({RELEASED})", "cifar10_ipc10_seed1"), ("`--crop-flip`", "cifar10_ipc10_crop")),
             "7 points less with crops, which ImageNet's images are made with; one set of images and, with crops, one student"),
    Ablation("cifar10", "r_bn of recover", (
        ("0", "cifar10_ipc10_rbn0"), ("0.001", "cifar10_ipc10_rbn0.001"), (f"0.01 ({RELEASED})", BASE), ("0.1", "cifar10_ipc10_rbn0.1"),
        ("1 (CPU, bf16)", "cifar10_ipc10_rbn1")),
             "without the BatchNorm term the images teach nothing; from 0.001 to 1 up to 6 points apart, in no order, where two sets of images lie 3.5 apart"),
    Ablation("cifar10", "iterations of recover", (
        ("500", "cifar10_ipc10_it500"), (f"1000 ({RELEASED})", BASE), ("2000", "cifar10_ipc10_it2000"), ("4000", "cifar10_ipc10_it4000")),
             "2000 and 4000 lie 5 to 7 points higher, one set of images each, where two sets at 1000 lie 3.5 apart"),
    Ablation("cifar10", "temperature", (("1", "cifar10_ipc10_T1"), ("4", "cifar10_ipc10_T4"), (f"30 ({RELEASED})", BASE)),
             "no difference beyond that of the seeds"),
    Ablation("cifar10", "batch of relabel and validate", (("10, ten steps an epoch", "cifar10_ipc10_bs10"), ("100, one step an epoch", BASE)),
             "ten times the steps change nothing"),
)


def read_results(folder, kind, model="resnet18"):
    """results.json of a row's 'soft', 'hard' or 'real' student; None where it is not there."""
    name = {"soft": f"student_{model}", "hard": f"student_{model}_hard", "real": f"random_real/student_{model}"}[kind]
    path = Path(folder) / name / "results.json"
    return read_json(path) if path.exists() else None


def read_teacher(folder):
    """The teacher's top-1 in percent, as measured when it was trained or by the labels; None where nothing tells."""
    path = Path(folder) / "teacher" / "metrics.jsonl"
    measured = [values["top1"] for values in read_metrics(path) if "top1" in values] if path.exists() else []
    if measured:
        return measured[-1]
    path = Path(folder) / "labels.manifest.json"
    labels = read_json(path)["settings"] if path.exists() else {}
    return labels.get("measured_top1") or (labels.get("teacher") or {}).get("top1")
