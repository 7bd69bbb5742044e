"""TensorBoard: the numbers of metrics.jsonl as event files, behind --tensorboard; an optional package."""
from pathlib import Path

from sre2l.run.errors import UserError, first_line

SERIES, STEPS = ("unit", "seed"), ("iteration", "epoch")


def check_tensorboard(wanted):
    """Raise UserError where --tensorboard is given and the package cannot be imported."""
    if not wanted:
        return
    try:
        import torch.utils.tensorboard  # noqa: F401  not above: an extra, and it takes a second
    except ImportError as error:
        raise UserError(f"--tensorboard: {first_line(error)}; 'python3 -m pip install tensorboard', "
                        f"or run without the flag: metrics.jsonl has the same numbers") from None


class Scalars:
    """Event files, a folder for each unit or seed: TensorBoard draws their curves over each other."""

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
        # purge_step: what a killed run wrote of this step and later ones is hidden
        if series not in self.writers:
            self.writers[series] = SummaryWriter(str(self.folder / series), purge_step=step)
        for key, value in values.items():
            if key not in (*SERIES, *STEPS):
                self.writers[series].add_scalar(key, value, step)
        self.writers[series].flush()  # a run may end by os._exit, or by a kill
