"""A process of several that ends in one of many ways: python -m sre2l.run.launch ... -m tests.worker HOW [OUTPUT FOLDER]."""
import ctypes
import os
import signal
import sys

import torch

from sre2l.run.claims import claim
from sre2l.run.processes import barrier, check_agreement, rank, start, sum_over_processes, world_size
from sre2l.run.errors import UserError
from sre2l.run.start import run_script


def main(words):
    how, *folder = words
    start(torch.device("cpu"))
    if folder:
        claim(*folder)
    print(f"{world_size()} processes", flush=True)
    barrier()
    if how == "disagree":
        check_agreement(rank(), "the processes disagree")
    if rank() == world_size() - 1:  # only the last; the others wait for it below
        if how == "mistake":
            raise UserError("the last process has a complaint")
        if how == "bug":
            raise LookupError("of the last process")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "wait":  # for a lock that it has itself: in C, where no signal reaches Python
            lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
            lock(mutex)
            os.write(1, b"waiting\n")
            lock(mutex)
    print(f"sum {sum_over_processes(torch.tensor([rank() + 1])).item()}")


if __name__ == "__main__":
    run_script(main, lambda: sys.argv[1:])
