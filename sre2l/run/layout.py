"""What may stand in an output folder and beside it: the names of a stage's files, and links."""
import os
import re
from pathlib import Path

from sre2l.run.errors import UserError

# What a stage may leave, as regular expressions. Image and label folders: the folders in them, and the files
# in these.
LAYOUT = {"images": (r"new\d+", r"class\d+_id\d+\.(jpg|png)"), "labels": (r"epoch_\d+", r"batch_\d+\.tar")}
PACKED = {"labels": r"epoch_\d+\.labels"}  # files that may lie in the folder itself, in place of those
LEFT = r"(.+/)?[^/]+\.[0-9a-f]{12}\.tmp"  # by a kill, of a file that was being written
LOGS = r"args\.json|log\.txt|metrics(\.rank\d+)?\.jsonl"
EVENTS = r"events\.out\.tfevents\.[^/]+"
RECORDS = rf"manifest\.json|sha256(\..+)?|{LOGS}"
PICTURES = r"png|(unit\d+\.)?(gif|snapshots)"
PICKED = r"scores\.jsonl|chosen\.json|groups\.pth"  # of picked real images
BESIDE = {"images": rf"{RECORDS}|{PICTURES}|{PICKED}|tensorboard|unit\d+(\.ipc\d+)?\.state",
          "labels": RECORDS}
INSIDE = {
    "images": "/".join(LAYOUT["images"]),
    "labels": f"{'/'.join(LAYOUT['labels'])}|{PACKED['labels']}",
    "teacher": rf"(teacher(\.e\d+)?(\.class_statistics)?|checkpoint)\.pth|tensorboard/{EVENTS}|"
               rf"settings\.json|\.folder\.lock|{LOGS}|{LEFT}",
    "student": rf"seed\d+/checkpoint\.pth|tensorboard/seed\d+/{EVENTS}|report\.html|(settings|results)\.json|"
               rf"\.folder\.lock|{LOGS}|{LEFT}",
}


def check_name(name, where):
    """Raise UserError unless a name that the file `where` lists is that of a file in one folder."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise UserError(f"{where}: {name!r} is not the plain name of a file")


def check_links(root):
    """Raise UserError for a symbolic link at any depth of a folder that leaves it or leads back into itself.
    Only links are resolved: 50,000 files take a tenth of a second."""
    top = os.path.realpath(root)

    def entries(folder):
        try:
            return list(os.scandir(folder))
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error.strerror}") from None

    def look(folder, above):
        for entry in entries(folder):
            place = os.path.join(above[-1], entry.name)
            if entry.is_symlink():
                place = os.path.realpath(entry.path)
                if os.path.commonpath((place, top)) != top:
                    raise UserError(f"{entry.path}: is a link to {place}, outside {top}; "
                                    f"put the files themselves there")
                if place in above:
                    raise UserError(f"{entry.path}: is a link to {place}, the folder that it lies in")
            if entry.is_dir():
                look(entry.path, (*above, place))

    look(root, (top,))


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
    check_links(root)
    folder_name, file_name = LAYOUT[kind]
    sizes = {}
    folders = []
    stray = []
    for folder in os.scandir(root):
        if re.fullmatch(PACKED.get(kind, ""), folder.name) and folder.is_file():
            sizes[folder.name] = folder.stat().st_size
            continue
        if not re.fullmatch(folder_name, folder.name) or not folder.is_dir():
            stray.append(folder.name)
            continue
        folders.append(folder.name)
        for entry in os.scandir(folder):
            name = f"{folder.name}/{entry.name}"
            if re.fullmatch(file_name, entry.name) and entry.is_file():
                sizes[name] = entry.stat().st_size
            else:
                stray.append(name)
    return sizes, sorted(folders), sorted(stray)
