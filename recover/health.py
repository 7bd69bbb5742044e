"""Signs that recover goes wrong, as rules on the numbers of its log lines.

Terms that are not finite end a run. A CE that never falls, and a BN term that dwarfs it, are warned of."""
import math

FEW_ITERATIONS = 100  # a run of fewer is a trial: BN may not have begun to fall in the middle of it
FEW_LINES = 8         # of a log, from which no quarter can be judged
FALLEN = 0.8          # of the first CE, below which it has fallen
SMALL = 0.5           # of ln(classes), the CE of a guess: below, nothing is wrong
DWARFS = 100          # times ln(classes); in the digits' demo r_bn * BN is 10 times in the middle


def last_quarter(values):
    """The mean of the last quarter of the log lines."""
    last = values[-max(1, len(values) // 4):]
    return sum(last) / len(last)


def advice(precision, iteration):
    """What to do about numbers that are not finite from this iteration on."""
    if precision == "fp16":
        return "half precision overflowed; the same command with --precision bf16 or tf32 continues"
    if not iteration:
        return ("the noise is finite, so the teacher's weights are not, "
                "or they overflow with this normalisation (--mean, --std)")
    return "a smaller --lr or --r-bn may help, or the teacher has weights that are not finite"


def describe_fault(faults, names, computed, precision):
    """One sentence about the first batch whose terms are not finite, None where all are.

    faults: of each batch, (iteration, names of its terms) or None; names: of the batches; computed: names of
    the terms that are computed; precision: of the teacher, for the advice."""
    found = [(fault, name) for fault, name in zip(faults, names) if fault]
    if not found:
        return None
    (first, terms), name = min(found, key=lambda pair: pair[0][0])
    others = f" (and {len(found) - 1} more of the units computed with it)" if len(found) > 1 else ""
    which = f"{' and '.join(terms)} {'is' if len(terms) == 1 else 'are'} not finite from iteration {first} on"
    if first and set(terms) >= set(computed):  # what all terms have in common is the images
        which = (f"the images are not finite after iteration {first - 1}, or the network overflowed on them: "
                 f"{which}")
    return f"{name}: {which}{others}; nothing of it is written: {advice(precision, first)}"


def cause_in_bn(bn, num_classes, from_noise):
    """The likely cause of a BN term that outweighs CE. bn: its values at the log lines so far.

    A BN term that falls can be matched, and only its weight is wrong. Where it does not fall, no image within
    the clamp has such statistics. from_noise: its first value is that of the noise."""
    comparable = f"{math.log(num_classes) / bn[-1]:.1g}"
    if bn[-1] < bn[0] / 2 or not from_noise:
        return f"--r-bn is too large for this architecture, {comparable} would make the two comparable"
    return (f"BN hardly falls, {bn[0]:.4g} to {bn[-1]:.4g}, so that the normalisation (--mean, --std) is "
            f"probably not the teacher's; if it is, --r-bn {comparable} would make the two comparable")


def find_warnings(iterations, ce, bn, total, r_bn, num_classes):
    """What the newest log line of a batch gives reason to say -> {"bn": sentence, "ce": sentence}, or less.

    "bn" comes once, in the middle, and "ce" at the end. iterations, ce, bn: of the lines so far; total: of
    iterations."""
    if total < FEW_ITERATIONS:
        return {}
    last = iterations[-1]
    from_noise = iterations[0] == 0
    guess = math.log(num_classes)
    found = {}

    # BN dwarfs CE.
    is_middle = last >= total / 2 and (len(ce) == 1 or iterations[-2] < total / 2)
    ratio = r_bn * bn[-1] / guess
    if is_middle and ratio > DWARFS:
        cause = cause_in_bn(bn, num_classes, from_noise)
        found["bn"] = f"r_bn * BN dwarfs CE, {ratio:.0f} times ln(classes) in iteration {last}: {cause}"

    # CE is judged at the end alone, where its last quarter is known.
    if last < total - 1 or len(ce) < FEW_LINES:
        return found

    # CE stays near its first value, and above what a teacher that knows the images gives. A run that was
    # continued does not know the CE of its noise, which is near that of a guess.
    start = ce[0] if from_noise else guess
    now = last_quarter(ce)
    if now >= max(FALLEN * start, SMALL * guess):
        ratio = r_bn * last_quarter(bn) / now
        if ratio > 10:
            cause = f"r_bn * BN is {ratio:.0f} times as much: {cause_in_bn(bn, num_classes, from_noise)}"
        else:
            cause = ("the likely cause is the normalisation (--mean, --std), or a teacher that was trained "
                     "for other classes or not at all")
        found["ce"] = (f"CE never fell: {ce[0]:.2f} in iteration {iterations[0]}, {now:.2f} in the last "
                       f"quarter, {guess:.2f} is a guess; {cause}")
    return found


def find_all_warnings(lines, names, total, r_bn, num_classes):
    """find_warnings of batches that are computed together, as one sentence of each kind.

    lines: (iteration, CE and BN of each batch) of each line of the log; names: of the batches."""
    hits = {"bn": [], "ce": []}  # (batch, sentence) of each kind
    iterations, ce, bn = zip(*lines)
    for name, own_ce, own_bn in zip(names, zip(*ce), zip(*bn)):
        for kind, sentence in find_warnings(iterations, own_ce, own_bn, total, r_bn, num_classes).items():
            hits[kind].append((name, sentence))

    sentences = []
    for found in filter(None, hits.values()):
        name, sentence = found[0]
        if len(found) > 1:
            name += f" (and {len(found) - 1} more of the {len(names)} units computed with it)"
        sentences.append(f"warning: {name}: {sentence}")
    return sentences
