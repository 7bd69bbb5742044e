#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/. The teacher is the
# one that was chosen on held-out images, so a tenth of the training images has no part in the set: data/c10h.
set -e
cd "$(dirname "$0")/../.."
root=$PWD; . sre2l/run/env.sh
python3 - <<'P'
import os
from pathlib import Path
from sre2l.data.image_folder import read_folder
from sre2l.data.real_images import hold_out
for split in ("train", "val"):
    for item in hold_out(read_folder(Path("data/cifar10/train")), 0.1, split).items:
        link = Path("data/c10h", split, *Path(item).parts[-2:])
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            os.link(item, link)
P
sh squeeze/squeeze.sh cifar10+best --name best --real-data data/c10h --precision bf16
sh recover/pick.sh cifar10+best --name best --real-data data/c10h
sh recover/recover.sh cifar10+best --name best --real-data data/c10h --precision bf16
sh relabel/relabel.sh cifar10+best --name best --real-data data/c10h
sh validate/train.sh cifar10+best --name best --val-dir data/cifar10 --precision bf16 --eval-every 500 --seeds 0
sh validate/random_real.sh cifar10 --name best --real-data data/cifar10 --seeds 0
