"""Student protocols as they were published, by name.

The settings are of the papers' code where it was read (the commits are named), else of the papers. Weight
decay is on weight matrices unless a row says otherwise."""
import math
from dataclasses import dataclass, replace

from sre2l.run.errors import UserError

# What a row settles of the flags, and what it wants of the labels where it says nothing else.
FLAGS = {"epochs": 300, "gradient_accumulation_steps": 1, "eval_every": 10,
         "loss": "kl", "temperature": 20.0, "kl_t2": False, "class_weight": 0.0,
         "sgd": False, "learning_rate": 0.2, "momentum": 0.9, "weight_decay": 1e-4,
         "adamw_lr": 1e-3, "adamw_weight_decay": 0.01, "decay_all": False,
         "lr_schedule": "cosine", "slowdown": 1.0, "milestones": None, "milestone_factor": 0.5,
         "warmup_epochs": 0, "ema": 0.0,
         "label_draw": "order", "temperature_schedule": "constant", "hard_epochs": None}
LABELS = {"mix": "cutmix", "crops": "0.08 to 1 of the area", "teacher": "eval mode",
          "augmentation": "none", "patch shuffle": "none", "teachers": 1}
IPCS = (1, 10, 50)  # images per class for which rows are published
STORED = ("labels", "stored in files", "made beside the student")


@dataclass(frozen=True)
class Row:
    """A published protocol for one data set.

    flags: of validate, all of FLAGS; labels: what relabel should have done, as describe_labels words it, a
    tuple where several will do; apart: what this project does otherwise, (of what, here, there); by_ipc: the
    images per class decide; models: how the names of the students begin that its learning rate is for, None
    for all; evaluated: of which evaluations it reports the best, "" where that is not known."""
    source: str
    flags: dict
    labels: dict
    apart: tuple = ()
    by_ipc: bool = False
    models: tuple | None = ("resnet18",)
    evaluated: str = "every 10 epochs"


def released(spec, ipc, model):
    """SRe2L's own: ImageNet and CIFAR-100 of its repository, Tiny-ImageNet of zeyuanyin/tiny-imagenet."""
    source = "SRe2L 8d00cba"
    if spec.name == "imagenet1k":
        flags = {"gradient_accumulation_steps": 2}
        return Row(source, FLAGS | flags, LABELS | {"batch size": 1024})
    if spec.name == "tiny-imagenet":
        flags = {"epochs": 100, "sgd": True, "decay_all": True, "warmup_epochs": 5, "kl_t2": True}
        return Row(source, FLAGS | flags, LABELS | {"batch size": 256, "mix": "none"}, (STORED,))
    flags = {"epochs": 400, "temperature": 30.0, "decay_all": True}
    labels = {"batch size": 128, "mix": "mixup", "crops": "padded by 4",
              "teacher": "train mode by whole batches"}  # by accident
    return Row(source, FLAGS | flags, LABELS | labels, (STORED,))


def cda(spec, ipc, model):
    """CDA, whose repository has no code of this part."""
    if spec.name == "imagenet1k":
        return Row("the paper of CDA", FLAGS, LABELS | {"batch size": 128}, evaluated="")
    return replace(released(spec, ipc, model), source="the paper of CDA", evaluated="")


def crops_of_rded(spec):
    """Half of the area or more at 224 pixels; small images are not cropped. Of large ones the patches are
    shuffled too."""
    if spec.size > 64:
        return {"crops": "0.5 to 1 of the area", "patch shuffle": "2 by 2"}
    return {"crops": "whole images"}


def rded(spec, ipc, model):
    """RDED. Its learning rates of other students are those of its scripts."""
    rates = {"resnet18": 1e-3, "mobilenet_v2": 2.5e-3, "efficientnet_b0": 2e-3, "vgg11": 5e-4,
             "alexnet": 1e-4, "vit": 1e-4, "swin": 1e-4}  # by how their names begin
    lr = next((lr for name, lr in rates.items() if model.startswith(name)), 1e-3)
    batch = {1: 10, 10: 50, 50: 100}[ipc] * (2 if spec.num_classes in (100, 1000) else 1)
    labels = {"batch size": 100 if spec.name == "tiny-imagenet" else batch, **crops_of_rded(spec)}
    apart = [STORED, ("forward passes in a step", "one", "two, which both update the running statistics")]
    if spec.name in ("imagenette", "imagewoof"):
        apart.append(("measured on", "all validation images", "50 of each class"))
    flags = {"slowdown": 2.0, "adamw_lr": lr}
    return Row("RDED 3f6453d", FLAGS | flags, LABELS | labels, tuple(apart), by_ipc=True,
               models=tuple(rates), evaluated="every 10 epochs of the last fifth")


# FADRM's (learning rate, slowdown) for ResNet-18 at IPC 1, 10 and 50; for CIFAR-10 those of CV-DD.
FADRM = {
    "cifar10": ((5e-4, 1.0), (5e-4, 1.0), (5e-4, 1.0)),
    "cifar100": ((5e-4, 2.0), (1e-3, 2.0), (1e-3, 1.0)),
    "tiny-imagenet": ((1e-3, 2.0), (1e-3, 2.0), (1e-3, 1.0)),
    "imagenette": ((5e-4, 2.0), (5e-4, 1.0), (5e-4, 2.0)),
    "imagewoof": ((5e-4, 2.0), (5e-4, 1.0), (1e-3, 2.0)),
    "imagenet1k": ((1e-3, 2.0), (1e-3, 2.0), (1e-3, 1.0)),
}


def fadrm(spec, ipc, model):
    """FADRM and FADRM+, of one or four teachers, which label in train mode but for the one of Tiny-ImageNet.
    Rate and slowdown were tuned for each entry on the test set. For ImageWoof at IPC 10 and 50 the batches of
    FADRM are of 10 and those of FADRM+ of 16."""
    lr, slowdown = FADRM[spec.name][IPCS.index(ipc)]
    is_long = spec.name in ("cifar10", "cifar100") or (spec.name == "tiny-imagenet" and ipc == 1)
    batch = 10 if spec.name in ("imagenette", "imagewoof") or (spec.name == "cifar10" and ipc == 1) else 16
    flags = {"epochs": 1000 if is_long else 300, "gradient_accumulation_steps": 2, "adamw_lr": lr,
             "slowdown": slowdown}
    labels = {"batch size": batch, "teacher": f"train mode by parts of {batch // 2}", "teachers": (1, 4)}
    apart = ()
    if spec.name == "imagewoof" and ipc > 1:
        parts = tuple(f"train mode by parts of {part}" for part in (5, 8))
        labels |= {"batch size": (10, 16), "teacher": parts}
    if spec.name == "tiny-imagenet":
        labels["teacher"] = ("eval mode", labels["teacher"])
    if spec.name == "cifar10":
        apart = (("learning rate and schedule of this row", "CV-DD's", "not published"),)
    return Row("FADRM f445e38", FLAGS | flags, LABELS | labels, apart, by_ipc=True,
               evaluated="in the last fifth of the epochs")


def edc(spec, ipc, model):
    """EDC, as in its paper; where its code says otherwise, `apart` tells."""
    flags = {"slowdown": 2.0, "loss": "mse", "class_weight": 0.025, "ema": 0.99}
    labels = {"crops": "0.5 to 1 of the area", "augmentation": "randaugment", "teachers": 5}
    if spec.name == "imagenet1k":
        flags |= {"eval_every": 30}
        labels |= {"batch size": 100, "augmentation": "none", "patch shuffle": "2 by 2", "teachers": 4}
        apart = (("schedule of this row", "by the paper", "linear, slowed by 2, by the code"),)
    elif spec.name == "tiny-imagenet":
        flags |= {"epochs": 1000 if ipc == 1 else 300, "eval_every": 30}
        labels |= {"batch size": 100}
        script = "SGD 0.1 with momentum 0.875 and weight decay 0.0005 by the script"
        apart = STORED, ("optimizer of this row", "by the paper", script)
    elif spec.name == "cifar100":
        flags |= {"epochs": 1000, "eval_every": 100}
        labels |= {"batch size": 50}
        script = "SGD 0.1 and ssrs by the script"
        apart = STORED, ("optimizer and schedule of this row", "by the paper", script)
    else:
        flags |= {"epochs": 1000, "lr_schedule": "multistep", "milestones": [0.8, 0.9, 0.95], "slowdown": 1.0}
        labels |= {"batch size": 10 if ipc == 1 else 25, "crops": LABELS["crops"], "teachers": 8}
        apart = (STORED,)
    every = f"every {flags.get('eval_every', 10)} epochs" + (" after 800" if spec.name == "cifar10" else "")
    return Row("EDC 80116a7", FLAGS | flags, LABELS | labels, apart, by_ipc=True, evaluated=every)


def rd3(spec, ipc, model):
    """RD3, for which no code was found: Adam is AdamW without decay."""
    flags = {"epochs": 400, "adamw_weight_decay": 0.0, "slowdown": 1.0 if model == "resnet18" else 2.0}
    labels = {**LABELS, **crops_of_rded(spec), "batch size": 50, "patch shuffle": "none"}
    del labels["teacher"]  # its mode is not published
    apart = (("temperature of this row", "RDED's", "not published"),)
    return Row("the paper of RD3", FLAGS | flags, labels, apart, models=None, evaluated="")


def ddranking(spec, ipc, model):
    """DD-Ranking's demo for ImageNet-1K, whose batch may have any size."""
    flags = {"temperature": 1.0, "slowdown": 2.0, "decay_all": True, "eval_every": 20}
    apart = [("learning rate", "one", "the best of 0.001, 0.005, 0.01, 0.05 and 0.1 on the test set")]
    if spec.name != "imagenet1k":
        apart.append(("data set", spec.name, "imagenet1k"))
    return Row("DD-Ranking b8b0966", FLAGS | flags, LABELS, tuple(apart), models=None,
               evaluated="every 20 epochs, mean of 5 seeds")


# Each protocol and the data sets that it was published for; None: it names none in particular.
PROTOCOLS = {
    "released": (released, ("imagenet1k", "tiny-imagenet", "cifar100", "cifar10")),
    "cda": (cda, ("imagenet1k", "tiny-imagenet")),
    "rded": (rded, None),
    "fadrm": (fadrm, tuple(FADRM)),
    "edc": (edc, ("imagenet1k", "tiny-imagenet", "cifar100", "cifar10")),
    "rd3": (rd3, None),
    "ddranking": (ddranking, None),
}


def find_row(name, spec, ipc, model):
    """The row of a protocol for a data set; of those by images per class, the nearest. ipc: None takes 10.

    Raises UserError for a data set without published settings."""
    make, datasets = PROTOCOLS[name]
    if datasets and spec.name not in datasets:
        raise UserError(f"--protocol {name}: nothing is published for {spec.name}, only for "
                        f"{', '.join(datasets)}; leave it away and type the flags")
    nearest = min(IPCS, key=lambda known: abs(math.log(known / (ipc or 10))))
    return make(spec, nearest, model)
