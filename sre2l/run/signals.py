"""Signals: a run of one process ends after the step under way.

Of several processes none can end by itself: there signals keep their default effect."""
import contextlib
import os
import signal
import sys
import time

from sre2l.run.processes import world_size

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# signals that come sooner after another are the same one: schedulers and shells both send theirs
REPEAT_SEC = 1


class Pending:
    """The signal that has come while a step is under way."""
    signal = None
    since = 0.0  # by time.monotonic
    in_steps = False
    ending = False


def install():
    """Handle SIGINT and SIGTERM: at once, or in `finishing_steps` after the step; a second one at once."""
    if world_size() > 1:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would raise KeyboardInterrupt
        return
    parent = os.getpid()
    Pending.ending = False

    def handle(number, _):
        # A worker process inherits this handler, and has nothing to finish.
        if os.getpid() != parent:
            os._exit(128 + number)
        # The first signal within a step waits for its end.
        if Pending.in_steps and Pending.signal is None:
            Pending.signal = signal.Signals(number)
            Pending.since = time.monotonic()
            os.write(2, f"\n{WORDS[number]}: finishing this step (once more: stop at once)\n".encode())
            return
        # The same signal again, from the scheduler and from the shell.
        if (Pending.in_steps or Pending.ending) and time.monotonic() - Pending.since < REPEAT_SEC:
            return
        # A later one ends the run at once, or even its end.
        if Pending.ending:
            os._exit(128 + number)
        end(signal.Signals(number))

    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background job ignores Ctrl-C
            signal.signal(number, handle)


def end(number):
    """End this run as the signal asks for: 130 or 143."""
    print(f"{WORDS[number]}; the same command continues", file=sys.stderr)
    Pending.ending = True
    Pending.since = time.monotonic()
    sys.exit(128 + number)


@contextlib.contextmanager
def finishing_steps():
    """Within this, a signal waits until the loop asks `stop_requested`. One that comes after the loop's last
    question waits for the next loop."""
    Pending.in_steps = True
    try:
        yield
    finally:
        Pending.in_steps = False


def stop_requested():
    """Has a signal come within `finishing_steps`?"""
    return Pending.signal is not None


def leave():
    """End the run as the signal asked for, everything being saved."""
    number = Pending.signal or signal.SIGTERM
    Pending.signal = None
    end(number)
