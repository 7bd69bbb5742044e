"""What two or more stages need. A signal that comes while a script is still importing torch ends it with a word, not with a traceback."""
import os
import signal
import sys


def end_at_once(number, _):
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:  # of several processes the launcher speaks
        os.write(2, b"interrupted; the same command continues\n" if number == signal.SIGINT else b"terminated; the same command continues\n")
    os._exit(128 + number)


if sys.argv[:1] == ["-m"]:  # python -m of a script, which begins
    for each in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, end_at_once)
