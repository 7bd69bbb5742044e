"""Signals and time: the step under way is finished and saved before a run ends; and how often a run saves what it has."""
import contextlib
import os
import signal
import sys
import time

from sre2l.run.errors import UserError

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
REPEAT_SEC = 1       # signals that come sooner after another are the same one: schedulers and launchers both send theirs
FIRST_SAVE_SEC = 15  # after the start; then twice as late each time, up to what is asked for: also a run that never lives long gets on


class Pending:
    """What has been asked for while steps are under way: the signal, or a reason to stop."""
    signal = reason = None
    since = 0.0  # of the signal, by time.monotonic
    in_steps = ending = False


def has_launcher():
    """Is this one of several processes that torchrun started? Then the launcher speaks to the user."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ


def install():
    """Handle SIGINT and SIGTERM: at once, or within `finishing_steps` after the step under way; one more is at once again. Of several processes
    each finishes its step; the launcher's second signal changes nothing, and processes.exit_soon_after_signals sees to the end."""
    parent, Pending.ending = os.getpid(), False

    def handle(number, _):
        if os.getpid() != parent:  # a worker process, which inherits this handler
            os._exit(128 + number)
        if Pending.in_steps and Pending.signal is None:
            Pending.signal, Pending.since = signal.Signals(number), time.monotonic()
            if not has_launcher():
                os.write(2, f"\n{WORDS[number]}: finishing this step and saving (once more: stop at once)\n".encode())
            return
        if (Pending.in_steps or Pending.ending) and (has_launcher() or time.monotonic() - Pending.since < REPEAT_SEC):
            return
        if Pending.ending:
            os._exit(128 + number)
        end(signal.Signals(number))
    for number in WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background job ignores Ctrl-C
            signal.signal(number, handle)


def end(number):
    """End this run as the signal asks for: 130 or 143."""
    if not has_launcher():
        print(f"{WORDS[number]}; the same command continues", file=sys.stderr)
    Pending.ending, Pending.since = True, time.monotonic()
    sys.exit(128 + number)


@contextlib.contextmanager
def finishing_steps():
    """Within this, a signal waits until the loop asks `stop_requested`; one that came after the last time it asked waits for the next loop."""
    Pending.in_steps = True
    try:
        yield
    finally:
        Pending.in_steps = False


def stop_because(reason):
    """Have the run stop after its step, with a UserError of these words."""
    Pending.reason = reason


def stop_requested():
    """Has a signal come within `finishing_steps`, or is there another reason to stop?"""
    return Pending.signal is not None or Pending.reason is not None


def leave():
    """End the run as was asked for, everything being saved. Of several processes perhaps only another was asked: that is as SIGTERM here."""
    number, reason = Pending.signal or signal.SIGTERM, Pending.reason
    Pending.signal = Pending.reason = None
    if reason is not None:
        raise UserError(reason)
    end(number)


class SaveTimer:
    """Is it time to save? Every `every_sec` since the last save or finished unit, sooner in the beginning of a run."""

    def __init__(self, every_sec):
        self.every_sec = every_sec
        self.wait_sec, self.last = min(every_sec, FIRST_SAVE_SEC), time.monotonic()

    def is_due(self):
        return time.monotonic() - self.last >= self.wait_sec

    def saved(self):
        self.wait_sec = min(self.every_sec, 2 * self.wait_sec)
        self.restart()

    def restart(self):
        """A unit is finished: nothing of it can be lost any more."""
        self.last = time.monotonic()
