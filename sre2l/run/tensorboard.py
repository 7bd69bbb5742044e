"""TensorBoard: the numbers of metrics.jsonl as event files, behind --tensorboard. The package is an optional extra."""
from pathlib import Path

from sre2l.run.errors import UserError, first_line

SERIES, STEPS = ("unit", "seed"), ("iteration", "epoch")


def check_tensorboard(wanted):
    """Raise UserError where --tensorboard is given and the package cannot be imported, before there is any work to lose."""
    if not wanted:
        return
    try:
        import torch.utils.tensorboard  # noqa: F401  not above: an extra, and it takes a second
    except ImportError as error:
        raise UserError(f"--tensorboard: {first_line(error)}; 'python3 -m pip install tensorboard', or run without the flag: "
                        f"metrics.jsonl has the same numbers") from None


class Scalars:
    """Event files in a folder: one folder for each unit or seed, so that TensorBoard draws their curves over each other."""

    def __init__(self, folder):
        self.folder, self.writers = Path(folder), {}

    def add(self, values):
        """Write one line of metrics. A line without a step is the last of its unit, whose file is closed."""
        from torch.utils.tensorboard import SummaryWriter
        series = next((f"{key}{values[key]}" for key in SERIES if key in values), "")
        step = next((values[key] for key in STEPS if key in values), None)
        if step is None:
            if series in self.writers:
                self.writers.pop(series).close()
            return
        if series not in self.writers:  # purge_step: what a killed run wrote of this step and later ones is hidden
            self.writers[series] = SummaryWriter(str(self.folder / series), purge_step=step)
        for key, value in values.items():
            if key not in (*SERIES, *STEPS):
                self.writers[series].add_scalar(key, value, step)
        self.writers[series].flush()  # a run may end by os._exit, or by a kill
