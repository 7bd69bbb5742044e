"""How a script starts and ends: errors in words, exit codes."""
import os
import sys
import traceback

from sre2l.run import claims, processes, signals
from sre2l.run.device import keep_freed_memory
from sre2l.run.errors import UserError, not_deterministic, os_error_in_words
from sre2l.run.processes import rank


def run_script(main, get_args):
    """Run a stage: a user's mistake is one sentence and exit code 2, Ctrl-C is 130, SIGTERM is 143. Of several processes the first
    speaks, and the launcher says why they ended."""
    if not signals.has_launcher():
        return run_guarded(main, get_args)
    processes.exit_soon_after_signals(claims.release)  # a claim that stays keeps other machines out for a while
    if rank() > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        run_guarded(main, get_args)
        processes.stop()
    except SystemExit as end:  # not through the interpreter's exit, where the threads of gloo and NCCL that wait for others abort
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


def run_guarded(main, get_args):
    """run_script for one process: turn what ends main into words and an exit code."""
    signals.install()
    keep_freed_memory()
    try:
        main(get_args())
    except UserError as error:
        processes.fail(f"error: {error}", 2)
    except OSError as error:  # a folder that cannot be written, a full disk
        processes.fail(f"error: {os_error_in_words(error)}", 2)
    except Exception as error:
        if words := not_deterministic(error):
            processes.fail(f"error: {words}", 2)
        if not signals.has_launcher():
            raise
        processes.fail(traceback.format_exc().rstrip(), 1)
    finally:
        claims.release()
