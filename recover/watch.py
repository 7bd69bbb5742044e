"""What is seen of units under way: the progress bar, log lines and metrics, and the looks for numbers that go wrong."""
import time

import torch

from recover.health import advice, describe_fault, find_all_warnings
from recover.batches import chunk_name
from sre2l.run.errors import UserError
from sre2l.run.log import eta


@torch.inference_mode()
def verifier_top1(verifier, images, targets):
    """The share in percent of images that a second network puts into their class. images (G, B, ...) -> G numbers."""
    right = [verifier.network(batch).argmax(1) == labels for batch, labels in zip(images, targets)]
    return [round(100 * hits.float().mean().item(), 2) for hits in right]


def check_finite(stepper, units, iteration, weights, precision):
    """Raise UserError where a term of a unit or its images have not been finite, before anything is written; what is not stays so in Adam's
    moments, so that a look now and then finds it. Syncs the GPU."""
    names, others = [f"unit {unit.index}" for unit in units], (("bn", weights.r_bn), ("tv", weights.tv_l2), ("l2", weights.l2_scale))
    fault = describe_fault(stepper.faults(), names, ["ce", *(term for term, weight in others if weight)], precision)
    if fault:
        raise UserError(fault)
    if not torch.isfinite(stepper.images.sum()):  # clamped: only a NaN does that. At 224 on a CPU 3 ms; isfinite(images).all() takes 277
        raise UserError(f"{chunk_name(units)}: the images are not finite after iteration {iteration}; nothing of it is written: "
                        f"{advice(precision, iteration + 1)}")


def make_watch(log, bar, units, args, weights, targets, verifier, stepper, num_classes):
    """The observer of G units: progress bar, and every --print-period iterations a log line and each unit's metrics line."""
    start, first, period, lines = time.monotonic(), bar.n, args.print_period or max(1, args.iteration // 40), []

    def watch(iteration, images, terms):
        bar.update(iteration + 1 - bar.n)
        quiet = iteration % period and iteration != args.iteration - 1
        if not quiet or images.device.type == "cpu":  # where nothing waits for it
            check_finite(stepper, units, iteration, weights, args.precision)
        if quiet:
            return
        found = {key: getattr(terms, key).tolist() for key in ("ce", "bn", "tv", "l2")}
        if verifier:
            found["verifier_top1"] = verifier_top1(verifier, images, targets)
        for i, unit in enumerate(units):
            values = {key: round(numbers[i], 6) for key, numbers in found.items()}
            priors = weights.tv_l2 * values["tv"] + weights.l2_scale * values["l2"]
            log.metrics(unit=unit.index, iteration=iteration, **values, r_bn_bn=round(weights.r_bn * values["bn"], 6), priors=round(priors, 6))
        mean = {key: sum(numbers) / len(numbers) for key, numbers in found.items()}
        priors = weights.tv_l2 * mean["tv"] + weights.l2_scale * mean["l2"]
        log.line(f"{chunk_name(units)}  iteration {iteration:5d}/{args.iteration}  ce {mean['ce']:8.4f}  r_bn*bn {weights.r_bn * mean['bn']:9.4f}"
                 f"  priors {priors:8.4f}" + (f"  verifier {mean['verifier_top1']:6.2f}%" if verifier else "")
                 + f"  {eta(iteration - first, args.iteration - 1 - first, start)}")
        lines.append((iteration, found["ce"], found["bn"]))
        for warning in find_all_warnings(lines, [f"unit {unit.index}" for unit in units], args.iteration, weights.r_bn, num_classes):
            log.line(warning)
    return watch
