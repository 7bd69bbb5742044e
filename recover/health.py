"""Signs that recover goes wrong, as rules on the numbers of its log lines: terms that are not finite, a CE that never falls, a BN term that
dwarfs it."""
import math

FEW_ITERATIONS = 100  # a run of fewer is a trial: BN may not have begun to fall in the middle of it
FEW_LINES = 8         # of a log, from which no quarter can be judged
FALLEN = 0.8          # of the first CE, below which it has fallen
SMALL = 0.5           # of ln(classes), the CE of a guess: below, nothing is wrong
DWARFS = 100          # times ln(classes); in the digits' demo r_bn * BN is 10 times in the middle


def mean(values):
    return sum(values) / len(values)


def last_quarter(values):
    """The mean of the last quarter of the log lines."""
    return mean(values[-max(1, len(values) // 4):])


def cause_in_bn(bn, num_classes, from_noise):
    """The likely cause of a BN term that outweighs CE. bn: its values at the log lines so far. Where it falls it can be matched, and only its
    weight is wrong; where it does not, no image within the clamp has such statistics. from_noise: as never_falls has it."""
    comparable = f"{math.log(num_classes) / bn[-1]:.1g}"
    if bn[-1] < bn[0] / 2 or not from_noise:
        return f"--r-bn is too large for this architecture, {comparable} would make the two comparable"
    return (f"BN hardly falls, {bn[0]:.4g} to {bn[-1]:.4g}, so that the normalisation (--mean, --std) is probably not the teacher's; "
            f"if it is, --r-bn {comparable} would make the two comparable")


def describe_fault(faults, names, computed, precision):
    """One sentence about the first unit whose terms are not finite, None where all are. faults: Stepper.faults(); names: of the units;
    computed: the terms that are; precision: of the teacher, for the advice."""
    found = [(fault, name) for fault, name in zip(faults, names) if fault]
    if not found:
        return None
    (first, terms), name = min(found, key=lambda pair: pair[0][0])
    others = f" (and {len(found) - 1} more of the units computed with it)" if len(found) > 1 else ""
    which = f"{' and '.join(terms)} {'is' if len(terms) == 1 else 'are'} not finite from iteration {first} on"
    if first and set(terms) >= set(computed):  # what all terms have in common is the images
        which = f"the images are not finite after iteration {first - 1}, or the network overflowed on them: {which}"
    return f"{name}: {which}{others}; nothing of it is written: {advice(precision, first)}"


def advice(precision, iteration):
    """What to do about numbers that are not finite."""
    if precision == "fp16":
        return "half precision overflowed; the same command with --precision bf16 or tf32 continues"
    if not iteration:
        return "the noise is finite, so the teacher's weights are not, or they overflow with this normalisation (--mean, --std)"
    return "a smaller --lr or --r-bn may help, or the teacher has weights that are not finite"


def never_falls(ce, num_classes, from_noise=True):
    """Is the mean of the last quarter of the CE values not below FALLEN of the first, and not small either? from_noise: the first value is that of
    the noise; a run that was continued has none, and is measured by the CE of a guess, from which noise is not far."""
    guess = math.log(num_classes)
    return len(ce) >= FEW_LINES and last_quarter(ce) >= max(FALLEN * (ce[0] if from_noise else guess), SMALL * guess)


def explain_ce(lines, r_bn, num_classes):
    """The warning about a CE that never falls; lines as in find_warnings."""
    iterations, ce, bn = zip(*lines)
    now, weighted = last_quarter(ce), r_bn * last_quarter(bn)
    text = f"CE never fell: {ce[0]:.2f} in iteration {iterations[0]}, {now:.2f} in the last quarter, {math.log(num_classes):.2f} is a guess"
    if weighted > 10 * now:
        return f"{text}; r_bn * BN is {weighted / now:.0f} times as much: {cause_in_bn(bn, num_classes, iterations[0] == 0)}"
    return f"{text}; the likely cause is the normalisation (--mean, --std), or a teacher that was trained for other classes or not at all"


def find_warnings(lines, total, r_bn, num_classes):
    """What the newest log line of a unit gives reason to say: -> {"bn": sentence} in the middle, {"ce": sentence} at the end, or nothing.

    lines: (iteration, ce, bn) of its log lines so far; total: the unit's iterations."""
    iterations, ce, bn = zip(*lines)
    if total < FEW_ITERATIONS:
        return {}
    found, last, from_noise = {}, iterations[-1], iterations[0] == 0
    middle = last >= total / 2 and (len(lines) == 1 or iterations[-2] < total / 2)
    ratio = r_bn * bn[-1] / math.log(num_classes)
    if middle and ratio > DWARFS:
        found["bn"] = f"r_bn * BN dwarfs CE, {ratio:.0f} times ln(classes) in iteration {last}: {cause_in_bn(bn, num_classes, from_noise)}"
    if last == total - 1 and never_falls(ce, num_classes, from_noise):
        found["ce"] = explain_ce(lines, r_bn, num_classes)
    return found


def find_all_warnings(lines, names, total, r_bn, num_classes):
    """find_warnings of units that are computed together, one sentence of a kind. lines: (iteration, ce of each unit, bn of each); names: theirs."""
    each = [find_warnings([(at, ce[i], bn[i]) for at, ce, bn in lines], total, r_bn, num_classes) for i in range(len(names))]
    sentences = []
    for kind in ("bn", "ce"):
        hits = [(name, found[kind]) for name, found in zip(names, each) if kind in found]
        if hits:
            others = f" (and {len(hits) - 1} more of the {len(names)} units computed with it)" if len(hits) > 1 else ""
            sentences.append(f"warning: {hits[0][0]}{others}: {hits[0][1]}")
    return sentences
