"""Folders of images and of labels by the names in them."""
import os
import re

from sre2l.settings import LAYOUT


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
