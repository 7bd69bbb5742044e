"""Several stages in one start: torchrun ... -m tests.several FILE, a list of [module, flags] in JSON."""
import importlib
import json
import sys
from pathlib import Path

from sre2l.run.start import run_script
from tests.helpers import run_main


def main(commands):
    for module, flags in commands:
        run_main(importlib.import_module(module), *flags)


if __name__ == "__main__":
    run_script(main, lambda: json.loads(Path(sys.argv[1]).read_text()))
