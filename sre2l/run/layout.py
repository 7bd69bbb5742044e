"""What a stage writes, by the names of its files: in its output folder and beside it."""
import os
import re
from pathlib import Path

from sre2l.run.links import check_link

# What a stage may leave, as regular expressions. Image and label folders: the folders in them, and the files
# in these.
LAYOUT = {"images": (r"new\d+", r"class\d+_id\d+\.(jpg|png)"), "labels": (r"epoch_\d+", r"batch_\d+\.tar")}
LEFT = r"(.+/)?[^/]+\.[0-9a-f]{12}\.tmp"  # by a kill, of a file that was being written
LOGS = r"args\.json|log\.txt|metrics(\.rank\d+)?\.jsonl"
EVENTS = r"events\.out\.tfevents\.[^/]+"
RECORDS = rf"manifest\.json|sha256(\..+)?|{LOGS}"
PICTURES = r"png|(unit\d+\.)?(gif|snapshots)"
BESIDE = {"images": rf"{RECORDS}|{PICTURES}|tensorboard|unit\d+(\.ipc\d+)?\.state", "labels": RECORDS}
INSIDE = {
    **{kind: "/".join(names) for kind, names in LAYOUT.items()},
    "teacher": rf"(teacher|checkpoint)\.pth|tensorboard/{EVENTS}|settings\.json|\.folder\.lock|"
               rf"{LOGS}|{LEFT}",
    "student": rf"seed\d+/checkpoint\.pth|tensorboard/seed\d+/{EVENTS}|report\.html|(settings|results)\.json|"
               rf"\.folder\.lock|{LOGS}|{LEFT}",
}


def find_files(root):
    """All files below a folder, and the links to folders in it, sorted."""
    found = []
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [Path(folder) / name for name in names + links]
    return sorted(found)


def scan(root, kind):
    """What is in a folder of images or labels -> ({'epoch_0/batch_0.tar': bytes}, the class or epoch folders,
    the entries that do not belong there). Raises UserError for a link that leads out of the folder."""
    folder_name, file_name = LAYOUT[kind]
    top = os.path.realpath(root)

    def entries(folder):
        with os.scandir(folder) as found:
            for entry in found:
                if entry.is_symlink():
                    check_link(entry.path, top, above=(top,))
                yield entry

    sizes = {}
    folders = []
    stray = []
    for folder in entries(root):
        if not re.fullmatch(folder_name, folder.name) or not folder.is_dir():
            stray.append(folder.name)
            continue
        folders.append(folder.name)
        for entry in entries(folder):
            name = f"{folder.name}/{entry.name}"
            if re.fullmatch(file_name, entry.name) and entry.is_file():
                sizes[name] = entry.stat().st_size
            else:
                stray.append(name)
    return sizes, sorted(folders), sorted(stray)
