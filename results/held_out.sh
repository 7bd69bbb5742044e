#!/bin/sh
# Nine tenths of the training images, and the tenth that settings are chosen on, as links of a data folder's files.
#   sh results/held_out.sh DATA DEST      DATA/train/<class>/ -> DEST/train/<class>/ and, for the tenth, DEST/val/<class>/
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
$python - "${1:?usage: sh results/held_out.sh DATA DEST}" "${2:?usage: sh results/held_out.sh DATA DEST}" <<'P'
import os
import sys
from pathlib import Path

from sre2l.data.image_folder import read_folder
from sre2l.data.real_images import hold_out
from sre2l.run.errors import UserError

data, dest = map(Path, sys.argv[1:])
try:
    images = read_folder(data / "train")
except UserError as error:
    sys.exit(f"error: {error}; the rows that keep a tenth for choices need a folder for each class there")
for split in ("train", "val"):
    for item in hold_out(images, 0.1, split).items:
        link = dest / split / Path(item).parent.name / Path(item).name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            os.link(item, link)
P
