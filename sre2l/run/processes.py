"""Several processes, one a GPU, on one machine or many: who am I, wait for the others, sum over all.

torchrun starts them and says in the environment which is which. Without it there is one process, number 0,
and everything here costs nothing. Recover and relabel only ask who they are; squeeze and validate meet in a
process group."""
import os
import socket
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from sre2l.run.errors import UserError, first_line

NO_ID = ("", "none")  # torchrun's default, where no rendezvous is named
PATIENCE = timedelta(hours=2)  # for the slowest process; a process that dies ends all of them at once
MEETING = timedelta(minutes=10)  # for the processes to find each other at the start


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


def launch_id():
    """What the processes of one torchrun have in common, and no others; None for a single process."""
    if world_size() == 1:
        return None
    words = [os.environ.get(key, "") for key in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")]
    if words[0] in NO_ID and local_world_size() == world_size():
        words.append(str(os.getppid()))  # torchrun's own process, of this launch alone
    return ":".join(words)


def check_launch_has_id():
    """Raise UserError where another launch with the same command would have the same `launch_id`."""
    has_none = world_size() > 1 and os.environ.get("TORCHELASTIC_RUN_ID", "") in NO_ID
    if has_none and local_world_size() < world_size():
        raise UserError("--overwrite on several machines deletes what earlier launches left, and this launch "
                        "has no id of its own: add --rdzv-id NAME to TORCHRUN, another name each time")


def describe_foreign():
    """What to know where RANK and WORLD_SIZE are set and torchrun has not started this process; else None."""
    if world_size() == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    return (f"RANK and WORLD_SIZE say that this is process {rank()} of {world_size()}, each of which does "
            f"its part, and torchrun has not started it; for a run of one process: unset RANK WORLD_SIZE")


def start(device):
    """Meet the other processes, before any barrier or sum: by gloo between CPUs, by NCCL between GPUs.

    Raises UserError where they do not come."""
    if world_size() == 1 or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if describe_foreign():
        where = ":".join(os.environ.get(key, "?") for key in ("MASTER_ADDR", "MASTER_PORT"))
        minutes = MEETING.seconds // 60
        print(f"waiting for {world_size() - 1} more processes at {where}, for {minutes} minutes",
              file=sys.__stderr__, flush=True)
    try:
        store, *_ = next(dist.rendezvous("env://", rank(), world_size(), timeout=MEETING))
        store.set_timeout(PATIENCE)
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        here = f"process {rank()} of {world_size()} on {socket.gethostname()}"
        raise UserError(f"{here} does not reach the others ({first_line(error)}); can the machines resolve "
                        f"each other's names, and is no port closed between them?") from None


def barrier():
    """Wait until all processes are here."""
    sum_over_processes(torch.zeros(1))  # not dist.barrier, which would occupy the GPU


def sum_over_processes(tensor):
    """The sum of a tensor over all processes that have met, in place -> the tensor."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def check_agreement(value, message):
    """Raise UserError(message) in all processes unless the integer `value` is the same in all."""
    pair = torch.tensor([value, -value])
    if dist.is_initialized():
        dist.all_reduce(pair, dist.ReduceOp.MAX)
    if pair.sum() != 0:
        raise UserError(message)
