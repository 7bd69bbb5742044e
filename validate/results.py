"""results.json: accuracies, the whole protocol, bytes and times; and the page about the run."""
import os
import statistics
import subprocess
import sys
from pathlib import Path

from sre2l.check.manifest import manifest_of
from sre2l.run.device import versions
from sre2l.run.files import as_json, read_json, sidecar, write_json
from sre2l.run.log import stage_seconds
from sre2l.run.output import recorded
from sre2l.run.paths import ROOT, run_folder

# What makes a process one of several: the page is none of them.
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
KEYS = ("top1", "top5", "best_top1", "best_top5")


def summarise(history):
    """One seed's history -> its last epoch and, apart, its best.

    NOTE: the best is chosen on the test set; quote the last."""
    measured = [values for values in history if "top1" in values]
    last = measured[-1]
    best = max(measured, key=lambda values: values["top1"])
    return {"top1": last["top1"], "top5": last["top5"], "epoch": last["epoch"],
            "best_top1": best["top1"], "best_top5": best["top5"], "best_epoch": best["epoch"]}


def mean_and_spread(values, digits):
    """-> {mean, std} over the seeds, rounded; std is the sample's, None for a single seed."""
    values = list(values)
    std = round(statistics.stdev(values), digits) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), digits), "std": std}


def seeds_used(args, students):
    """The seed of every stage, None where nothing tells. order: of the images' order in the epochs."""
    labels = manifest_of(args.fkd_path) or {}
    images = labels.get("images_seed")
    if images is None:
        images = recorded(sidecar(args.train_dir, "manifest.json"), "seed")
    teacher = labels.get("teacher") or {}
    return {"squeeze": teacher.get("seed"), "recover": images, "relabel": labels.get("seed"),
            "order": labels.get("order_seed", args.fkd_seed), "students": list(students)}


def add_earlier(rows, path, settings):
    """Add the rows that an earlier run of the same protocol left in results.json -> {seed: row}, ordered."""
    rows = {str(seed): row for seed, row in rows.items()}
    earlier = read_json(path) if path.exists() else {}
    if earlier.get("protocol") != as_json(settings):
        return rows
    return dict(sorted({**earlier["seeds"], **rows}.items(), key=lambda item: int(item[0])))


def seconds_of_stages(args):
    """Each stage's seconds; None for a stage that left no metrics, as a downloaded set has none."""
    metrics = {"squeeze": run_folder(args) / "teacher" / "metrics.jsonl",
               "recover": sidecar(args.train_dir, "metrics.jsonl"),
               "relabel": sidecar(args.fkd_path, "metrics.jsonl"),
               "validate": Path(args.output_dir) / "metrics.jsonl"}
    return {stage: stage_seconds(path) for stage, path in metrics.items()}


def write_results(args, settings, rows, num_bytes, device, deviations):
    """Write results.json for these seeds and those of earlier runs of this protocol -> its contents.

    rows: {seed: summary}; num_bytes: {image_bytes, label_bytes}; deviations: from --protocol, where given."""
    path = Path(args.output_dir) / "results.json"
    rows = add_earlier(rows, path, settings)
    results = {
        **{key: mean_and_spread((row[key] for row in rows.values()), 4) for key in KEYS},
        "seeds": rows,
        "seeds_used": seeds_used(args, map(int, rows)),
        "protocol": settings,
        **({"published": {"protocol": args.protocol, "deviations": deviations}} if args.protocol else {}),
        **num_bytes,
        "seconds": seconds_of_stages(args),
        "versions": versions(device),
    }
    write_json(path, results)
    return results


def is_of_earlier_images(protocol, labels):
    """Was a student trained on other images than those that the folder's labels belong to now?"""
    then = (protocol["labels"] or {}).get("images_sha256")
    now = recorded(sidecar(labels, "manifest.json"), "images_sha256")
    return None not in (then, now) and then != now


def teacher_top1(labels):
    """The settings of labels -> top-1 of their teacher in percent, None if unknown; where that is from."""
    measured = labels.get("measured_top1")
    if measured is not None:
        return measured, "as relabel measured it"
    return (labels.get("teacher") or {}).get("top1"), "as its checkpoint says"


def describe_top1(results):
    """'96.32% +- 0.19 over 3 seeds', without a spread for a single seed."""
    mean, std = results["top1"]["mean"], results["top1"]["std"]
    spread = "" if std is None else f" +- {std:.2f} over {len(results['seeds'])} seeds"
    return f"{mean:.2f}%{spread}"


def write_page(run, student):
    """Have report.page write its page about a run, in a process of its own -> a line for the log.

    student: the folder that was written last. Whatever goes wrong, the line says so and the run goes on."""
    run = run if run.is_dir() else student  # a student elsewhere, of images and labels elsewhere
    alone = {key: value for key, value in os.environ.items() if key not in OF_TORCHRUN}
    command = [sys.executable, "-m", "report.page", "--run", str(run), "--student", str(student)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"no report: {error}"
    said = (done.stderr if done.returncode else done.stdout).strip() or "it ended without a word"
    last_line = said.splitlines()[-1]
    return f"no report: {last_line}" if done.returncode else last_line
