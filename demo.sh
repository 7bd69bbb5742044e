#!/bin/sh
# The whole method on the embedded digits: teacher, images, labels, student, a check of the files, two controls, one table.   sh demo.sh
# About five minutes on two free CPU cores, after the first call has set up .venv. Afterwards look at runs/digits/report.html.
set -e
root=$(cd "$(dirname "$0")" && pwd)
if [ $# -gt 0 ]; then echo "usage: sh demo.sh      (no arguments)" >&2; exit 2; fi
. "$root/sre2l/run/setup.sh"
sh "$root/squeeze/squeeze.sh" digits
sh "$root/recover/recover.sh" digits --snapshot-every 5
sh "$root/relabel/relabel.sh" digits
sh "$root/relabel/check.sh" digits
sh "$root/validate/train.sh" digits
sh "$root/validate/train.sh" digits --hard-labels
sh "$root/validate/random_real.sh" digits
python3 -m report.summary --dataset digits
