"""How many bytes label files take, and whether there is room for them."""
import shutil

from sre2l.run.errors import UserError
from sre2l.run.files import make_folder, place_of


def in_bytes(number):
    """A number of bytes as people read it: '541.1 kB'."""
    power = min(4, (len(str(number)) - 1) // 3)
    return f"{number / 1000 ** power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def check_room(root, num_bytes):
    """Raise UserError where the disk has no room for these bytes."""
    folder = place_of(root).parent
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(f"{root}: {in_bytes(num_bytes)} of labels are still to be written, the disk has room for {in_bytes(free)}; "
                        f"make room, or give another folder with --fkd-path. What is there is kept")


def num_label_bytes(num_images, batch_size, epochs, num_classes, precision):
    """Bytes of all label files: the logits, 25 bytes of crop, flip and partner for each row, 2,400 of zip for each file."""
    num_files = epochs * -(-num_images // batch_size)
    return num_images * epochs * (num_classes * (2 if precision == "fp16" else 4) + 25) + 2400 * num_files
