"""What a unit has come to, kept in a file while it is computed, so that a kill costs minutes and not the unit."""
from concurrent.futures import Future

import torch

from sre2l.run.errors import UserError
from sre2l.run.files import atomic, sidecar, hash_json
from sre2l.run.signals import SaveTimer
from sre2l.nets.models import read_checkpoint

FORMAT = "sre2l-recover-state-1"


def state_path(root, units, ipc_start):
    """Of the units that are computed together: beside the images, named after the first; a range that begins within that unit has its own."""
    cut = f".ipc{ipc_start}" if units[0].pairs[0][0] < ipc_start else ""
    return sidecar(root, f"unit{units[0].index}{cut}.state")


class Keeper:
    """Keeps the state of the units under way. settings: what images depend on; writer: an executor of one thread, on which files are written."""

    def __init__(self, root, settings, ipc_start, every_sec, writer, log):
        self.root, self.settings, self.ipc_start, self.writer, self.log = root, settings, ipc_start, writer, log
        self.timer, self.under_way = SaveTimer(every_sec), Future()
        self.under_way.set_result(None)

    def identity(self, units):
        settings = {key: value for key, value in self.settings.items() if value is not None}  # as a manifest's comparison has it: off is not there
        return hash_json([FORMAT, settings, [unit.index for unit in units]])

    def load(self, units, device):
        """-> (the iterations done, [images, first moment, second moment] of these units), or (0, None) where nothing whole of them is there."""
        path = state_path(self.root, units, self.ipc_start)
        if not path.exists():
            return 0, None
        try:
            state = read_checkpoint(path)
        except UserError as error:
            self.log.line(f"{error}; these units begin anew")
            return 0, None
        if state.get("identity") != self.identity(units):
            return 0, None
        return state["iteration"], [tensor.to(device) for tensor in state["tensors"]]

    def is_due(self):
        return self.timer.is_due() and self.under_way.done()

    def save(self, units, iteration, tensors):
        """Begin to write the state after `iteration` iterations. tensors: images and moments, copied here (syncs the GPU). A full disk is
        no reason to stop: the images are still to come."""
        state = {"identity": self.identity(units), "iteration": iteration, "tensors": [tensor.to("cpu", copy=True) for tensor in tensors]}
        self.under_way = self.writer.submit(self.write, state_path(self.root, units, self.ipc_start), state)
        self.timer.saved()

    def write(self, path, state):
        try:
            with atomic(path) as tmp:
                torch.save(state, tmp)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            self.log.line(f"warning: {path} could not be written ({error}); until it can, a kill costs the whole unit")

    def forget(self, units):
        """These units are written: their states are of no use any more, also where another stack of units began with them. A range beside
        this one that shares a unit has a state of its own, which stays."""
        for unit in units:
            state_path(self.root, [unit], self.ipc_start).unlink(missing_ok=True)
        self.timer.restart()
