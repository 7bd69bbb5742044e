"""Folders of images and of labels by the names in them: what is in one, and where one is that was unpacked elsewhere."""
import os
import re

from sre2l.settings import LAYOUT


def find_sets(root, kind):
    """The folders that hold images or labels in their own layout: `root` itself, or the nearest below it, three levels down at most."""
    folder_name, file_name = LAYOUT[kind]

    def entries(folder, pattern=".*"):
        with os.scandir(folder) as found:
            return sorted(entry.path for entry in found if re.fullmatch(pattern, entry.name))

    level = [str(root)]
    for _ in range(4):
        if sets := [folder for folder in level if any(os.path.isdir(inner) and entries(inner, file_name) for inner in entries(folder, folder_name))]:
            return sets
        level = [path for folder in level for path in entries(folder) if os.path.isdir(path) and not os.path.islink(path)]
    return []


def misplaced(root, kind):
    """A sentence for a folder that is no set of this kind, as that of an unpacked archive may be: where one is; None where none is near."""
    for found in ("images", "labels") if kind == "images" else ("labels", "images"):
        if sets := find_sets(root, found):
            return f"{root}: no {kind} are in this folder; {found} are in {' and in '.join(sets)}" + (": give that one" if found == kind else "")
    return None


def scan(root, kind):
    """-> ({'epoch_0/batch_0.tar': bytes}, the class or epoch folders, the entries that do not belong into such a folder)."""
    (folder_name, file_name), there, folders, stray = LAYOUT[kind], {}, [], []
    for folder in os.scandir(root):
        if not re.fullmatch(folder_name, folder.name) or not folder.is_dir():
            stray.append(folder.name)
            continue
        folders.append(folder.name)
        for entry in os.scandir(folder):
            name = f"{folder.name}/{entry.name}"
            if re.fullmatch(file_name, entry.name) and entry.is_file():
                there[name] = entry.stat().st_size
            else:
                stray.append(name)
    return there, sorted(folders), sorted(stray)
