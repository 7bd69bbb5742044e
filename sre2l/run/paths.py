"""Where this project lies, and where a run lies in it."""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_folder(args):
    """runs/<name>, the name defaulting to the data set; an absolute --name is a folder of its own."""
    return ROOT / "runs" / (args.name or args.dataset)
