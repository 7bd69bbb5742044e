"""Names and links that would lead out of a folder."""
import os

from sre2l.run.errors import UserError


def check_name(name, where):
    """Raise UserError unless a name that the file `where` lists is that of a file in one folder."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise UserError(f"{where}: {name!r} is not the plain name of a file")


def check_link(path, top, above=()):
    """-> where a symbolic link leads, resolved. Raises UserError unless that is below `top` (resolved) and
    none of the folders `above`."""
    target = os.path.realpath(path)
    if os.path.commonpath((target, top)) != top:
        raise UserError(f"{path}: is a link to {target}, outside {top}; put the files themselves there")
    if target in above:
        raise UserError(f"{path}: is a link to {target}, the folder that it lies in")
    return target


def check_links(root):
    """Raise UserError for a symbolic link at any depth of a folder that leaves it or leads back into itself.
    Only links are resolved: 50,000 files take a tenth of a second."""
    top = os.path.realpath(root)

    def look(folder, above):
        with os.scandir(folder) as entries:
            for entry in entries:
                is_link = entry.is_symlink()
                place = check_link(entry.path, top, above) if is_link else os.path.join(above[-1], entry.name)
                if entry.is_dir():
                    look(entry.path, (*above, place))
    look(root, (top,))
