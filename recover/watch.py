"""What is seen of the batches under way: progress bar, log, metrics, warnings."""
import collections
import contextlib
import time

import torch
from tqdm import tqdm

from recover.health import advice, describe_fault, find_all_warnings
from recover.objective import PRIORS, TERMS, Terms, weighted_sum
from recover.several import average_terms, common_weights
from sre2l.nets.teacher import load_teacher
from sre2l.run.errors import UserError
from sre2l.run.log import eta
from sre2l.run.processes import rank


def load_verifier(args, spec, device):
    """The second network, where one is asked for: weights from --verifier-arch-path or torchvision."""
    if args.verifier is None and args.verifier_arch is None and args.verifier_arch_path is None:
        return None
    arch = args.verifier or args.verifier_arch
    verifier = load_teacher(spec, args.verifier_arch_path, arch, default_arch="mobilenet_v2")
    if (verifier.mean, verifier.std) != (spec.mean, spec.std):
        raise UserError(f"--verifier {verifier.arch}: its normalisation {verifier.mean}, {verifier.std} "
                        f"is not the teacher's {spec.mean}, {spec.std}")
    verifier.check_takes(spec.size)
    verifier.network.to(device)
    return verifier


@torch.inference_mode()
def verifier_top1(verifier, images, targets):
    """The percentage of images that a second network puts into their class.

    images (G, B, 3, S, S), targets (G, B) -> G numbers."""
    right = [verifier.network(batch).argmax(1) == labels for batch, labels in zip(images, targets)]
    return [round(100 * hits.float().mean().item(), 2) for hits in right]


class Watch:
    """Follows one group of batches after another. By default it says 40 lines of each.

    stepper: what optimises them; matched: the teachers; verifier: a second network whose top-1 is logged."""

    def __init__(self, args, log, stepper, matched, num_classes, verifier):
        self.log = log
        self.stepper = stepper
        self.weights = common_weights([one.weights for one in matched])
        self.precision = args.precision
        self.iterations = args.iteration
        self.period = args.print_period or max(1, args.iteration // 40)
        self.num_classes = num_classes
        self.verifier = verifier

    @contextlib.contextmanager
    def following(self, group, done):
        """Take up a group. done: how many of its iterations an earlier run has done."""
        self.group = group
        self.names = [f"unit {batch.index}" for batch in group.batches]
        self.done = done
        self.since = time.monotonic()
        self.lines = []  # of each line of the log: its iteration, CE and BN of each batch
        self.recent = collections.deque(maxlen=self.stepper.engine.period)  # (Terms, Weights) of iterations
        hidden = True if rank() > 0 else None  # None: shown on a terminal alone
        self.bar = tqdm(total=self.iterations, initial=done, desc=group.name, disable=hidden, leave=False)
        with self.bar:
            yield

    def after(self, iteration, terms):
        """Look at an iteration that was just done. terms: those before its step, (G,) each."""
        self.bar.update(iteration + 1 - self.bar.n)
        is_logged = self.is_logged(iteration)
        self.keep(iteration, terms)
        if is_logged or self.stepper.images.device.type == "cpu":  # a GPU would have the host wait for it
            self.check_finite(iteration)
        if not is_logged:
            return

        shown = average_terms(self.recent, [1.0] * len(self.recent), self.weights.r_bn)
        found = {key: getattr(shown, key).tolist() for key in TERMS}  # syncs the GPU
        if self.verifier:
            images = self.stepper.images
            found["verifier_top1"] = verifier_top1(self.verifier, images, self.group.targets(images.device))
        self.write_metrics(iteration, found)
        self.write_line(iteration, {key: sum(numbers) / len(numbers) for key, numbers in found.items()})

        self.lines.append((iteration, found["ce"], found["bn"]))
        r_bn = self.weights.r_bn
        for warning in find_all_warnings(self.lines, self.names, self.iterations, r_bn, self.num_classes):
            self.log.line(warning)

    def is_logged(self, iteration):
        return iteration % self.period == 0 or iteration == self.iterations - 1

    def keep(self, iteration, terms):
        """Keep the terms for a line of the log: of teachers that take turns it shows the mean over the last
        iteration of each. The next iterations overwrite those of a CUDA graph."""
        engine = self.stepper.engine
        if any(self.is_logged(iteration + later) for later in range(engine.period)):
            if engine.period > 1:
                terms = Terms(**{key: getattr(terms, key).clone() for key in TERMS})
            self.recent.append((terms, engine.at(iteration).weights))

    def check_finite(self, iteration):
        """Raise UserError where a term or an image has not been finite. Syncs the GPU.

        A look now and then finds it, since Adam's moments keep what is not finite."""
        computed = [term for term, coefficient in self.weights.by_term().items() if coefficient]
        fault = describe_fault(self.stepper.nonfinite_terms(), self.names, computed, self.precision)
        if fault:
            raise UserError(fault)
        # Images are clamped, so only a NaN spoils their sum: 3 ms at 224 on a CPU; isfinite().all(): 277.
        if not torch.isfinite(self.stepper.images.sum()):
            raise UserError(f"{self.group.name}: the images are not finite after iteration {iteration}; "
                            f"nothing of it is written: {advice(self.precision, iteration + 1)}")

    def priors(self, values):
        """The part of the loss that needs no teacher."""
        return weighted_sum({name: values[name] for name in PRIORS}, self.weights)

    def write_metrics(self, iteration, found):
        """A line of metrics for each batch. found: {term: G numbers}."""
        for i, batch in enumerate(self.group.batches):
            values = {key: round(numbers[i], 6) for key, numbers in found.items()}
            weighted = {"r_bn_bn": self.weights.r_bn * values["bn"], "priors": self.priors(values)}
            weighted = {key: round(value, 6) for key, value in weighted.items()}
            self.log.metrics(unit=batch.index, iteration=iteration, **values, **weighted)

    def write_line(self, iteration, means):
        """A line of the log. means: {term: its mean over the batches}."""
        parts = [f"{self.group.name}  iteration {iteration:5d}/{self.iterations}",
                 f"ce {means['ce']:8.4f}",
                 f"r_bn*bn {self.weights.r_bn * means['bn']:9.4f}",
                 f"priors {self.priors(means):8.4f}"]
        if self.verifier:
            parts.append(f"verifier {means['verifier_top1']:6.2f}%")
        parts.append(eta(iteration - self.done, self.iterations - 1 - self.done, self.since))
        self.log.line("  ".join(parts))
