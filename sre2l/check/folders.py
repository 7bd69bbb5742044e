"""Folders of images and of labels by the names in them: what is in one, and where one is that was unpacked elsewhere."""
import os
import re

from sre2l.run.settings import LAYOUT


def find_sets(root, kind):
    """The folders that hold images or labels in their own layout: `root` itself, or the nearest below it, three levels down at most. Asks the disk
    about no single file, since these may be millions; a folder that cannot be read counts as empty."""
    folder_name, file_name = LAYOUT[kind]

    def entries(folder):
        try:
            with os.scandir(folder) as found:
                return sorted(found, key=lambda entry: entry.name)
        except OSError:
            return []

    def is_set(folders):
        inner = (entry.path for entry in folders if re.fullmatch(folder_name, entry.name))
        return any(re.fullmatch(file_name, entry.name) for path in inner for entry in entries(path))

    level = [str(root)]
    for _ in range(4):
        folders = {path: [entry for entry in entries(path) if entry.is_dir()] for path in level}
        if sets := [path for path in level if is_set(folders[path])]:
            return sets
        level = [entry.path for path in level for entry in folders[path] if not entry.is_symlink()]
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
