"""How a script starts and ends: what it changes in its process, errors in words, exit codes."""
import os
import sys
import time
import traceback

from PIL import Image

from sre2l.run import signals
from sre2l.run.device import keep_freed_memory
from sre2l.run.errors import UserError, not_deterministic, os_error_in_words
from sre2l.run.processes import describe_foreign, rank, world_size
from sre2l.run.safe_load import allow_known_types, forbid_open_pickle

FIRST_SPEAKS_SEC = 1.5


def prepare_process():
    """What our scripts change in their process at the start. Importing the package changes nothing."""
    forbid_open_pickle()
    allow_known_types()
    # data/image_folder.py has a limit of its own, which names the file and its size
    Image.MAX_IMAGE_PIXELS = None
    keep_freed_memory()


def run_script(main, get_args):
    """Run a stage: a user's mistake is one sentence and exit code 2, Ctrl-C is 130, SIGTERM is 143.

    Of several processes the first alone prints what all would; torchrun's exit code is 1."""
    prepare_process()
    signals.install()
    foreign = describe_foreign()
    if foreign:
        print(f"note: {foreign}", file=sys.stderr, flush=True)
    if rank() > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    code = 0
    try:
        main(get_args())
    except Exception as error:
        words, code = describe_end(error)
        if world_size() == 1 and code == 1:
            raise
        if rank() > 0:
            time.sleep(FIRST_SPEAKS_SEC)  # where the first process fails as well, torchrun ends this one
        print(words, file=sys.stderr if rank() == 0 else sys.__stderr__)
    # not through the interpreter's exit, where threads of gloo and NCCL that wait for others abort
    if world_size() > 1:
        sys.__stdout__.flush()
        sys.__stderr__.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def describe_end(error):
    """What ended a script -> (words for the user, exit code): 2 for the user to mend, 1 for our bug."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, OSError):  # a folder that cannot be written, a full disk
        return f"error: {os_error_in_words(error)}", 2
    if words := not_deterministic(error):
        return f"error: {words}", 2
    return traceback.format_exc().rstrip(), 1
