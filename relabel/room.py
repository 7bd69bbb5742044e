"""Whether a disk has room for the label files that are still to be written."""
import shutil

from sre2l.run.errors import UserError
from sre2l.run.files import make_folder, resolved


def in_bytes(number):
    """A number of bytes as people read it: '541.1 kB'."""
    power = min(4, (len(str(number)) - 1) // 3)
    unit = ("bytes", "kB", "MB", "GB", "TB")[power]
    return f"{number / 1000 ** power:.{1 if power else 0}f} {unit}"


def check_room(root, num_bytes):
    """Raise UserError where the disk has no room for these bytes of labels."""
    folder = resolved(root).parent
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(f"{root}: {in_bytes(num_bytes)} of labels are still to be written, the disk has room "
                        f"for {in_bytes(free)}; make room, or give another folder with --fkd-path. "
                        f"What is there is kept")
