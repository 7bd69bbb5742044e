"""How many bytes label files take, and whether there is room for them."""
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


def num_label_bytes(num_images, batch_size, epochs, num_classes, precision):
    """Bytes of all label files. precision: of the logits, 'fp16' or 'fp32'.

    A row has its logits and 25 bytes of crop, flip and partner; a file has 2,400 bytes of zip."""
    num_rows = num_images * epochs
    num_files = epochs * -(-num_images // batch_size)
    row_bytes = num_classes * (2 if precision == "fp16" else 4) + 25
    return num_rows * row_bytes + 2400 * num_files
