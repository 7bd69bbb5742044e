"""Which stored batch a step learns from: --label-draw, and how T falls: --temperature-schedule.

    order     epoch e of the student takes epoch e of the labels
    pool      each step takes any stored batch, with replacement, as LPLD; a short last batch of an epoch is
              replaced by the one before it
    phases    soft, hard, soft, as HALD: a first and a last part of the epochs learns from the stored batches,
              each once before any comes again; between them fresh crops and mixes are drawn, and the student
              learns the mixed classes, smoothed; with --hard-labels it learns these in all phases

What is drawn comes from (seed of the student, epoch): it depends on nothing that ran before."""
import math
from itertools import chain, groupby, islice

from sre2l.data.augment import unit_rng
from sre2l.data.loader import Batch, Batches, epoch_orders
from sre2l.run.errors import UserError

DRAWS = ("order", "pool", "phases")
SCHEDULES = ("constant", "step", "cosine")
SMOOTHING = 0.8  # of the classes in HALD's hard phase
FACTOR, STEPS, LEAST_T = 0.7, 10, 2.0  # of LPQLD: T falls to 0.7 of itself after 30 of 300 epochs, or to 2
OF_POOL, OF_DECK, OF_HARD = 11, 12, 13  # what follows the seed in the seed of each generator


def check_draws(args):
    """Raise UserError for flags of this page that contradict others."""
    if args.hard_epochs is not None and args.label_draw != "phases":
        raise UserError(f"--hard-epochs would do nothing with --label-draw {args.label_draw}; leave it away, "
                        f"or type --label-draw phases")
    if args.label_draw == "phases" and not 1 <= hard_epochs(args) <= args.epochs - 2:
        raise UserError(f"--label-draw phases: {hard_epochs(args)} of --epochs {args.epochs} would be hard, "
                        f"and each of the three phases needs an epoch; type more --epochs or other "
                        f"--hard-epochs")
    if args.temperature_schedule != "constant" and (args.loss == "mse" or args.hard_labels):
        raise UserError(f"--temperature-schedule {args.temperature_schedule} would do nothing: this loss has "
                        f"no temperature; leave it away")
    if args.temperature_schedule == "cosine" and args.temperature <= LEAST_T:
        raise UserError(f"--temperature-schedule cosine falls to {LEAST_T:g}, and -T {args.temperature:g} is "
                        f"not above that; leave it away, or begin with a larger -T")


def hard_epochs(args):
    """How many epochs the hard phase has: by default half of them."""
    if args.label_draw != "phases":
        return 0
    return args.epochs // 2 if args.hard_epochs is None else args.hard_epochs


def hard_range(args):
    """The epochs of the hard phase, in the middle."""
    first = (args.epochs - hard_epochs(args)) // 2
    return range(first, first + hard_epochs(args))


def describe_draws(args):
    """What the protocol says of this page: nothing where all is as published in SRe2L."""
    found = {}
    if args.label_draw != "order":
        found["label_draw"] = args.label_draw
    if args.label_draw == "phases":
        found["hard_epochs"] = hard_epochs(args)
    if args.temperature_schedule != "constant":
        found["temperature_schedule"] = args.temperature_schedule
    return found


def temperature_at(args, epoch):
    """T in an epoch of the student."""
    if args.temperature_schedule == "step":
        return args.temperature * FACTOR ** (STEPS * epoch // args.epochs)
    if args.temperature_schedule == "cosine":
        return LEAST_T + (args.temperature - LEAST_T) * (1 + math.cos(math.pi * epoch / args.epochs)) / 2
    return args.temperature


class Pool:
    """The stored batches, by number: those of epoch 0 first."""

    def __init__(self, labels, order_seed):
        batches = Batches(labels.num_images, labels.batch_size, order_seed, labels.epochs)
        self.per_epoch = batches.per_epoch
        self.batch_size = labels.batch_size
        self.size = len(batches)
        orders = epoch_orders(labels.num_images, order_seed)
        self.orders = [order.astype("int32") for order in islice(orders, labels.epochs)]

    def __getitem__(self, number):
        epoch, index = divmod(int(number), self.per_epoch)
        rows = self.orders[epoch][index * self.batch_size:(index + 1) * self.batch_size]
        return Batch(epoch, index, rows.astype("int64"))

    def drawn(self, seed, epoch):
        """The batches of an epoch as LPLD draws them."""
        for number in unit_rng(seed, OF_POOL, epoch).integers(self.size, size=self.per_epoch):
            batch = self[number]
            is_short = len(batch.rows) < self.batch_size and batch.index > 0
            yield self[number - 1] if is_short else batch

    def dealt(self, seed, count):
        """The count-th epoch of those that deal out the whole pool, and shuffle it anew when it is empty."""
        steps = range(count * self.per_epoch, (count + 1) * self.per_epoch)
        for deck, of_deck in groupby(steps, lambda step: step // self.size):
            order = unit_rng(seed, OF_DECK, deck).permutation(self.size)
            for step in of_deck:
                yield self[order[step % self.size]]


def choose_batches(args, labels, seed, first):
    """What the student is shown from epoch `first` on -> pairs: Batches, and whether their crops and mixes
    are drawn anew, without logits, in place of the stored ones. labels: a LabelFolder."""
    if args.label_draw == "order":
        batches = Batches(labels.num_images, labels.batch_size, args.fkd_seed, args.epochs, first)
        return [(batches, False)]
    pool = Pool(labels, args.fkd_seed)
    if args.label_draw == "pool":
        drawn = (pool.drawn(seed, epoch) for epoch in range(first, args.epochs))
        return [(chain.from_iterable(drawn), False)]
    hard = hard_range(args)
    before = (pool.dealt(seed, epoch) for epoch in range(first, hard.start))
    between = Batches(labels.num_images, labels.batch_size, args.fkd_seed, hard.stop, max(first, hard.start))
    after = (pool.dealt(seed, epoch - len(hard)) for epoch in range(max(first, hard.stop), args.epochs))
    return [(chain.from_iterable(before), False), (between, True), (chain.from_iterable(after), False)]


def fresh_settings(manifest, seed):
    """The settings by which the hard phase draws crops and mixes: those of the labels, with the student's
    seed; where they mix, by cutmix."""
    mix = manifest["mix"]
    return {**manifest, "seed": unit_rng(seed, OF_HARD).integers(2 ** 31).item(),
            **({} if mix == "none" else {"mix": "cutmix", "mix_alpha": 1.0})}
