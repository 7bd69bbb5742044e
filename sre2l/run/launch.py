"""torchrun that ends as one process does: one sentence instead of a traceback of each process, and its exit code (2, 130, 143).

Run: python -m sre2l.run.launch --nproc_per_node=4 --standalone -m recover.recover --dataset digits      (the launchers do, with GPUS=4)
"""
import logging
import os
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import parse_args, run

from sre2l.run.errors import first_line
from sre2l.run.signals import WORDS

FOLLOWING = (signal.SIGTERM, signal.SIGABRT)  # what ends the rest: torchrun's own signal, and libraries that miss their peers


def share_cores(num_processes):
    """Each process its part of the cores, where the user does not say otherwise; torchrun gives each one, with a warning."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_processes)))


def first_cause(failures):
    """Which of {rank: ProcessFailure} the others followed -> (words, exit code).

    A user's mistake; else a process that a signal killed, such as out of memory; else the earliest that left words."""
    def order(item):
        data, code = item[1].error_file_data, item[1].exitcode
        kind = 0 if code == 2 else 1 if code < 0 and -code not in FOLLOWING else 2 if "timestamp" in data else 3
        return kind, data.get("timestamp", 0)

    rank, cause = min(failures.items(), key=order)
    code = cause.exitcode if cause.exitcode > 0 else 128 - cause.exitcode
    data = cause.error_file_data
    return data["message"] if "timestamp" in data else f"error: process {rank} ended with exit code {code}; the same command continues", code


def main(argv):
    logging.disable(logging.ERROR)  # torchrun's own account of a failure
    args = parse_args(argv)
    try:
        share_cores(int(args.nproc_per_node))
        run(args)
    except ChildFailedError as error:
        words, code = first_cause(error.failures)
        print(words, file=sys.stderr)
        sys.exit(code)
    except SignalException as error:
        print(f"{WORDS.get(error.sigval, 'interrupted')}; the same command continues", file=sys.stderr)
        sys.exit(128 + int(error.sigval))
    except (RendezvousError, ValueError) as error:
        print(f"error: torchrun could not bring the machines together ({first_line(error)}); "
              f"check the flags in TORCHRUN, and give each start a new --rdzv-id", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
