"""One writer at a time: a claim is a file beside an output folder that says which process is about to write which part of it."""
import contextlib
import errno
import os
import random
import re
import threading
import time
from pathlib import Path

import torch

from sre2l.run import signals
from sre2l.run.processes import rank, sum_over_processes
from sre2l.run.errors import UserError
from sre2l.run.files import STALE_SEC, TOKEN, alone_in, sidecar, clear_leftovers, host, is_alive, place_of, read_json, token, write_json

HEARTBEAT_SEC = 20  # between touches of a claim; elsewhere a process counts as dead after files.STALE_SEC without one
PATIENCE_SEC = 5    # for a process that is just ending, such as the one that this command's last start was
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)  # other errors of a claim's file system may pass
held = set()        # the claims of this process
holding = threading.Lock()  # a heartbeat that finds a claim gone, or this process giving its claims up: one after the other


def overlap(part, other):
    """Do two parts of a folder have something in common? A part is (first, end) of a range of image indices, or None for all."""
    return part is None or other is None or (part[0] < other[1] and other[0] < part[1])


def others_in_the_way(root, mine, run, part):
    """The claims of living processes of other runs on something of this part, each with is_far (is it another machine's?), its path and when it
    was touched last."""
    found = []
    for path in mine.parent.iterdir():
        name = re.fullmatch(rf"{re.escape(Path(root).name)}\.({TOKEN})\.claim", path.name)
        if not name or path == mine or not is_alive(name[1], path, mine.stat().st_mtime):
            continue
        with contextlib.suppress(UserError):  # gone in this moment
            claim = read_json(path)
            if claim.get("run") != run and overlap(part, claim.get("part")):
                found.append({**claim, "is_far": name[2] != host(), "path": path, "touched": path.stat().st_mtime_ns})
    return found


def claim(root, part=None):
    """Claim a folder, or images part = (first, end) per class of it, for this process until `release`. Several processes of one run share it.

    Raises UserError where a living process of another run has a claim on it. A dead one's claim counts for nothing; whether one of another machine
    is dead shows with time, and is waited for: a job that a scheduler starts anew on another machine goes on."""
    run = sum_over_processes(torch.tensor([random.SystemRandom().getrandbits(60) if rank() == 0 else 0])).item()
    mine = sidecar(root, f"{token()}.claim")
    until, first_seen = time.monotonic() + PATIENCE_SEC, {}
    fields = {"run": run, "part": part, "host": os.uname().nodename, "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    while True:
        with alone_in(mine.parent):
            write_json(mine, fields)
            others = others_in_the_way(os.path.abspath(root), mine, run, part)
            if not others:
                break
            mine.unlink()
        living = [other for other in others if not other["is_far"] or first_seen.get(other["path"], other["touched"]) != other["touched"]]
        if living and time.monotonic() > until:
            other = living[0]
            what = "to it" if other["part"] is None else f"images {other['part'][0]} to {other['part'][1] - 1} of each class to it"
            raise UserError(f"{root}: process {other['pid']} on {other['host']} has been writing {what} since {other['since']}; "
                            f"wait for it or stop it, or choose another --name or folder")
        if not living and not first_seen:
            print(f"{root}: waiting for a sign of life of process {others[0]['pid']} on {others[0]['host']}, which has claimed it; "
                  f"{STALE_SEC / 60:.0f} minutes after the last one it counts as dead", flush=True)
        first_seen = {other["path"]: other["touched"] for other in others} | first_seen
        time.sleep(0.2 if living else min(1.0, STALE_SEC / 10))
    held.add(mine)
    if len(held) == 1:
        threading.Thread(target=beat, daemon=True).start()
    clear_leftovers(mine.parent, place_of(root).parent, now=mine.stat().st_mtime)


def beat():
    """Touch the claims now and then. One that is gone stops the run: its folder was removed, or another process thinks this one dead."""
    while held:
        time.sleep(HEARTBEAT_SEC)
        for path in list(held):
            with holding:
                try:
                    if path in held:
                        os.utime(path)
                except OSError as error:
                    if error.errno in GONE:
                        held.discard(path)
                        signals.stop_because(f"{path}: this run's claim is gone; was its folder removed, or did this process sleep for long?")


def release():
    """Give up all claims of this process, and with them the reason to stop that one which was gone had given."""
    with holding:
        for path in list(held):
            held.discard(path)
            with contextlib.suppress(OSError):
                path.unlink()
        signals.stop_because(None)
