"""What a label folder still needs: which files, how many bytes, and whether there is room for them."""
import shutil

import torch
from tqdm import tqdm

from sre2l.batches import in_order
from sre2l.distributed import rank, sum_over_processes, world_size
from sre2l.errors import UserError
from sre2l.files import hash_file, make_folder, place_of
from sre2l.labels import label_name, label_path
from sre2l.manifest import read_hashes


def missing_batches(root, batches, threads):
    """-> the batches whose label files are not there yet, or are not what was recorded. Of several processes each reads a part."""
    known, intact = read_hashes(root), torch.zeros(len(batches), dtype=torch.int32)

    def look(number):
        batch = batches[number]
        path = label_path(root, batch.epoch, batch.index)
        intact[number] = path.exists() and known.get(label_name(batch.epoch, batch.index)) == hash_file(path)

    own = range(rank(), len(batches), world_size())
    for _ in tqdm(in_order(look, own, threads), "checking labels", total=len(own), disable=None, leave=False):
        pass
    return [batch for batch, is_intact in zip(batches, sum_over_processes(intact).tolist()) if not is_intact]


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
