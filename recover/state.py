"""The state of the batches under way, in a file beside the images: a kill costs minutes, not the batch."""
import time

import torch

from sre2l.run.errors import UserError
from sre2l.run.files import atomic, hash_json, sidecar
from sre2l.run.safe_load import safe_load

FORMAT = "sre2l-recover-state-1"
FIRST_SAVE_SEC = 15  # after the start; then twice as late each time: a run that never lives long gets on too
UNRECORDED = {"lossless": False}  # what older runs did not record where it was off


def state_path(root, batch, ipc_start):
    """The file of the group that begins with this batch. Of two ranges that share a batch, each has a file.

    ipc_start: the first ipc index of this run's range."""
    is_cut = batch.pairs[0][0] < ipc_start
    return sidecar(root, f"unit{batch.index}.ipc{ipc_start}.state" if is_cut else f"unit{batch.index}.state")


class StateKeeper:
    """Keeps what an iteration changes, for the group of batches under way.

    root: the image folder; settings: what an image depends on; ipc_start: of this run's range; every_sec:
    seconds between saves; writer: an executor of one thread, which writes the files; log: a RunLog."""

    def __init__(self, root, settings, ipc_start, every_sec, writer, log):
        self.root = root
        self.settings = {k: v for k, v in settings.items() if v not in (None, UNRECORDED.get(k))}
        self.ipc_start = ipc_start
        self.writer = writer
        self.log = log
        self.every_sec = every_sec
        self.wait_sec = min(every_sec, FIRST_SAVE_SEC)
        self.since = time.monotonic()  # the last save or finished batch
        self.writing = None  # the latest write, a Future

    def path(self, group):
        return state_path(self.root, group.batches[0], self.ipc_start)

    def identity(self, group):
        """A hash of all that a state depends on, the same as in older runs."""
        return hash_json([FORMAT, self.settings, [batch.index for batch in group.batches]])

    def load(self, group, device):
        """-> (iterations done, [images, first moment, second moment]), without a state (0, None)."""
        path = self.path(group)
        if not path.exists():
            return 0, None
        try:
            state = safe_load(path, "checkpoint")
        except UserError as error:
            self.log.line(f"{error}; these units begin anew")
            return 0, None
        if not isinstance(state, dict) or state.get("identity") != self.identity(group):
            return 0, None
        self.log.line(f"{group.name}: continues after iteration {state['iteration']}")
        return state["iteration"], [tensor.to(device) for tensor in state["tensors"]]

    def is_due(self):
        """Is it time to save, and is the state before written?"""
        is_written = self.writing is None or self.writing.done()
        return is_written and time.monotonic() - self.since >= self.wait_sec

    def save(self, group, iteration, tensors):
        """Begin to write the state after `iteration` iterations. Copies the tensors first (syncs the GPU)."""
        copies = [tensor.to("cpu", copy=True) for tensor in tensors]
        state = {"identity": self.identity(group), "iteration": iteration, "tensors": copies}
        self.writing = self.writer.submit(self.write, self.path(group), state)
        self.wait_sec = min(self.every_sec, 2 * self.wait_sec)
        self.since = time.monotonic()

    def write(self, path, state):
        """Write one state. A full disk does not stop the run: its images may still find room."""
        try:
            with atomic(path) as tmp:
                torch.save(state, tmp)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            self.log.line(f"warning: {path} could not be written ({error}); "
                          "until it can, a kill costs the whole unit")

    def forget(self, batches):
        """Delete the states of batches whose images are written, but not those of another range."""
        for batch in batches:
            state_path(self.root, batch, self.ipc_start).unlink(missing_ok=True)
        self.since = time.monotonic()  # nothing of them can be lost any more
