"""Several processes, one a GPU, on one machine or many: who am I, wait for the others, sum over all, end together.

Without torchrun's environment there is one process, number 0, and everything here costs nothing."""
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from sre2l.run.errors import UserError, first_line
from sre2l.run.signals import Pending

PATIENCE = timedelta(hours=12)  # for the slowest process: one more unit of recover than the others'. A dead one ends all at once
GRACE_SEC = 3                   # after a signal; torchrun's own is 30, during which a process that waits for a dead one would sit
STEP_GRACE_SEC = 25             # the same where a step is under way, which is finished and saved


def rank():
    """The number of this process among all, from 0; process 0 writes what is written once."""
    return int(os.environ.get("RANK", 0))


def world_size():
    """How many processes there are, over all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank():
    """The number of this process on its machine: of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size():
    """How many processes this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def start(device):
    """Meet the other processes, where there are any: once, before claim, barrier or any sum. gloo between CPUs, NCCL between GPUs.

    Raises UserError where they do not come."""
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # also of one process: kernels, events and graphs take the current GPU
    if world_size() == 1 or dist.is_initialized():
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"process {rank()} of {world_size()} on {socket.gethostname()} does not reach the others ({first_line(error)}); "
                        f"can the machines resolve each other's names, and is no port closed between them?") from None


def stop():
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier():
    """Wait until all processes are here."""
    sum_over_processes(torch.zeros(1))  # not dist.barrier, which would occupy the GPU


def sum_over_processes(tensor):
    """The sum of a tensor over all processes, in place -> the tensor."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def largest(value):
    """The largest of all processes' integers, the same in all; one process asks nobody."""
    if world_size() > 1:
        value = torch.tensor([value])
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def check_agreement(value, message):
    """Raise UserError(message) in all processes unless the integer `value` is the same in all."""
    pair = torch.tensor([value, -value])
    if world_size() > 1:
        dist.all_reduce(pair, dist.ReduceOp.MAX)
    if pair.sum() != 0:
        raise UserError(message)


def fail(message, code):
    """End this process with a message to the user. Of several processes the launcher gets it, and says one of all (launch.py)."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with open(path, "w") as file:
            json.dump({"message": message, "timestamp": time.time()}, file)
    else:
        print(message, file=sys.stderr)
    sys.exit(code)


def exit_soon_after_signals(before):
    """See that a signal ends this process even where it waits inside the GPU's or the network's library, out of Python's reach, and that
    a launcher that is killed takes it along. before() is called ahead of such an end."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a worker's signals are its own

    def wait():
        while writer and (number := reader.recv(1)[0]) not in (signal.SIGTERM, signal.SIGINT):
            pass
        time.sleep(STEP_GRACE_SEC if Pending.in_steps else GRACE_SEC)
        before()
        os._exit(128 + number)
    threading.Thread(target=wait, daemon=True).start()
