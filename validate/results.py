"""results.json: the accuracy of each seed, last epoch first, with mean and spread, the whole protocol, bytes, times."""
import statistics
from pathlib import Path

from sre2l.check.manifest import manifest_of
from sre2l.run.files import as_json, sidecar, read_json, write_json
from sre2l.run.log import stage_seconds
from sre2l.run.paths import run_folder
from sre2l.run.settings import recorded


def summarise(history):
    """One seed's history -> its last epoch and, apart, its best. NOTE: best is chosen on the test set; quote the last."""
    measured = [values for values in history if "top1" in values]
    last, best = measured[-1], max(measured, key=lambda values: values["top1"])
    return {"top1": last["top1"], "top5": last["top5"], "epoch": last["epoch"],
            "best_top1": best["top1"], "best_top5": best["top5"], "best_epoch": best["epoch"]}


def mean_and_spread(rows, key):
    """-> {mean, std} over the seeds; std is the sample's, None for a single seed."""
    values = [row[key] for row in rows]
    return {"mean": round(statistics.mean(values), 4), "std": round(statistics.stdev(values), 4) if len(values) > 1 else None}


def seeds_used(args, students):
    """The seed of every stage as far as the results of the earlier ones tell, None where they do not; order: of the images in the epochs."""
    labels = manifest_of(args.fkd_path) or {}
    images = labels.get("images_seed")
    if images is None:
        images = recorded(sidecar(args.train_dir, "manifest.json"), "seed")
    return {"squeeze": (labels.get("teacher") or {}).get("seed"), "recover": images, "relabel": labels.get("seed"),
            "order": labels.get("order_seed", args.fkd_seed), "students": list(students)}


def write_results(args, settings, rows, image_bytes, label_bytes, versions):
    """Write results.json for the seeds in rows ({seed: summary}), and for those that an earlier run of the same protocol left -> its contents."""
    folder = Path(args.output_dir)
    path, protocol = folder / "results.json", as_json(settings)
    earlier = read_json(path) if path.exists() else {}
    rows = {str(seed): row for seed, row in rows.items()}
    if earlier.get("protocol") == protocol:
        rows = dict(sorted({**earlier["seeds"], **rows}.items(), key=lambda item: int(item[0])))
    metrics = {"squeeze": run_folder(args) / "teacher" / "metrics.jsonl", "recover": sidecar(args.train_dir, "metrics.jsonl"),
               "relabel": sidecar(args.fkd_path, "metrics.jsonl"), "validate": folder / "metrics.jsonl"}
    keys = ("top1", "top5", "best_top1", "best_top5")
    results = {**{key: mean_and_spread(list(rows.values()), key) for key in keys}, "seeds": rows, "seeds_used": seeds_used(args, map(int, rows)),
               "protocol": settings, "image_bytes": image_bytes, "label_bytes": label_bytes,
               "seconds": {stage: stage_seconds(path) for stage, path in metrics.items()}, "versions": versions}
    write_json(path, results)
    return results
