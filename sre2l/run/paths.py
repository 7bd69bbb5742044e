"""Where this project lies, and where a run lies in it."""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_folder(args):
    """runs/<name>, the name defaulting to the data set; an absolute --name is a folder of its own."""
    return ROOT / "runs" / (args.name or args.dataset)


def student_name(model):
    """The folder of a student in a run: student_resnet18; of PATH/nets.py:Net student_nets-Net."""
    place, colon, function = model.rpartition(":")
    return f"student_{Path(place).name.removesuffix('.py')}-{function}" if colon else f"student_{model}"
