"""--protocol: the flags that a published row sets, and how a run deviates from the row."""
import argparse
from argparse import Namespace
from pathlib import Path

from sre2l.data.codecs import NONE
from sre2l.data.codecs.exact import DTYPES
from validate.protocol import describe_loss, describe_optimizer, describe_schedule, describe_temperature
from validate.published import FLAGS, IPCS, find_row


class TakeProtocol(argparse.Action):
    """--protocol NAME: unset what a row settles, so that only what is typed after it stands beside the row;
    fill_in sets the rest."""

    def __call__(self, parser, namespace, name, option_string=None):
        vars(namespace).update(dict.fromkeys(FLAGS), protocol=name)


def images_per_class(folder):
    """Of a folder of synthetic images; None where there is none yet."""
    files = list(Path(folder).glob("*/*"))
    return max(1, round(len(files) / len({path.parent for path in files}))) if files else None


def fill_in(args, spec):
    """Set what --protocol settles and nobody typed after it. Does nothing without --protocol."""
    if args.protocol:
        row = find_row(args.protocol, spec, images_per_class(args.train_dir), args.model)
        for name in FLAGS:
            if getattr(args, name) is None:
                setattr(args, name, row.flags[name])


def describe_flags(args):
    """The flags of a protocol in words, as far as they have an effect."""
    return {"epochs": args.epochs, "micro-batches": args.gradient_accumulation_steps,
            "optimizer": ", ".join(f"{key} {value}" for key, value in describe_optimizer(args).items()),
            "weight decay": "on all parameters" if args.decay_all else "on weight matrices",
            "schedule": describe_schedule(args), "warm-up epochs": args.warmup_epochs,
            "loss": describe_loss(args), "temperature": describe_temperature(args), "ema": args.ema,
            "labels drawn": args.label_draw, "temperature over the epochs": args.temperature_schedule,
            "epochs between evaluations": args.eval_every}


def describe_crops(crop):
    """The crops of a manifest in words."""
    if crop["kind"] == "padded":
        return f"padded by {crop['padding']}"
    low, high = crop["scale"]
    is_whole = crop["kind"] == "none" or low == high == 1
    return "whole images" if is_whole else f"{low:g} to {high:g} of the area"


def describe_labels(facts):
    """What a row may want of the labels, in words. facts: their manifest, or what the files alone tell."""
    batch = min(facts["batch_size"], facts["num_images"])
    found = {"batch size": batch, "mix": facts["mix"]}
    if "crop" not in facts:
        return found
    parts = facts.get("batch_statistics")
    shuffle = facts.get("patch_shuffle")
    teacher = "train mode by " + ("whole batches" if parts is True else f"parts of {parts}")
    return {**found, "crops": describe_crops(facts["crop"]),
            "teacher": teacher if parts else "eval mode",
            "augmentation": facts.get("augment") or "none",
            "patch shuffle": f"{shuffle} by {shuffle}" if shuffle else "none",
            "teachers": len(facts.get("teachers") or [facts["teacher"]])}


def choices(wanted):
    """What a row wants, as a tuple: several where each of them will do."""
    return wanted if isinstance(wanted, tuple) else (wanted,)


def find_deviations(args, spec, facts):
    """--protocol: how this run differs from the published row, a line each. facts: of the labels, None where
    there are none yet."""
    ipc = images_per_class(args.train_dir)
    row = find_row(args.protocol, spec, ipc, args.model)
    here = describe_flags(args)
    there = describe_flags(Namespace(**row.flags, hard_labels=False))
    if facts:
        here |= {f"{key} of the labels": value for key, value in describe_labels(facts).items()}
        wanted = dict(row.labels)
        if "batch size" in wanted:  # not more than there are images
            sizes = choices(wanted["batch size"])
            wanted["batch size"] = tuple(min(size, facts["num_images"]) for size in sizes)
        there |= {f"{key} of the labels": value for key, value in wanted.items()}

    differing = []
    if row.models and not args.model.startswith(row.models):
        differing.append(("student", args.model, f"{row.models[0]} (whose learning rate this is)"))
    if row.by_ipc and ipc not in IPCS:
        differing.append(("images per class", ipc or "not known yet", "1, 10 and 50 (the nearest is taken)"))
    for key, wanted in there.items():
        if here.get(key, "not known") not in choices(wanted):
            differing.append((key, here.get(key, "not known"), " or ".join(map(str, choices(wanted)))))
    stored = (facts or {}).get("codec") or (facts or {}).get("decoded_from")
    if stored not in (None, NONE, *DTYPES):  # the teacher's own, or rounded to float16 as all published ones
        differing.append(("codec of the labels", stored, "every logit, at least in fp16"))
    differing += row.apart
    if row.evaluated:
        differing.append(("reported", "the last epoch", f"the best of those measured {row.evaluated}"))
    return [f"{what}: {this} here, {that} in {row.source}" for what, this, that in differing]
