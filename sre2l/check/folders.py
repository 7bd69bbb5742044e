"""Folders of images and labels by the names in them, and where one is that was unpacked elsewhere."""
import os
import re

from sre2l.run.layout import LAYOUT, PACKED


def list_folder(folder):
    """The entries of a folder by name; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []


def find_sets(root, kind):
    """The folders that hold images or labels in their own layout: `root`, or the nearest below it, at most
    three levels down.

    Asks the disk about no single file, since these may be millions."""
    folder_name, file_name = LAYOUT[kind]

    def is_set(entries):
        inner = (entry.path for entry in entries if re.fullmatch(folder_name, entry.name) and entry.is_dir())
        return (any(re.fullmatch(PACKED.get(kind, ""), entry.name) for entry in entries)
                or any(re.fullmatch(file_name, entry.name) for path in inner for entry in list_folder(path)))

    level = [str(root)]
    for _ in range(4):
        found = {path: list_folder(path) for path in level}
        sets = [path for path in level if is_set(found[path])]
        folders = {path: [entry for entry in entries if entry.is_dir()] for path, entries in found.items()}
        if sets:
            return sets
        level = [entry.path for path in level for entry in folders[path] if not entry.is_symlink()]
    return []


def misplaced(root, kind):
    """A sentence for a folder that is no set of this kind, such as that of an unpacked archive: where the set
    is. None where no set is near."""
    other = "labels" if kind == "images" else "images"
    for found in (kind, other):
        sets = find_sets(root, found)
        if sets:
            advice = ": give that one" if found == kind else ""
            return f"{root}: no {kind} are in this folder; {found} are in {' and in '.join(sets)}{advice}"
    return None
