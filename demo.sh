#!/bin/sh
# The whole method on the embedded digits: teacher, images, labels, student, a check, two controls, one table.
#   sh demo.sh      five to seven minutes on two CPU cores, after the first call has set up .venv
set -e
root=$(cd "$(dirname "$0")" && pwd)
if [ $# -gt 0 ]; then echo "usage: sh demo.sh      (no arguments)" >&2; exit 2; fi
. "$root/sre2l/run/setup.sh"

# A shell handles a signal only after its foreground command. So the stages run in the background, and a
# signal to this script ends the one under way.
stage=
stop() { kill "$stage" 2>/dev/null; wait "$stage" || true; exit "$1"; }
trap 'stop 130' INT
trap 'stop 143' TERM
run() { "$@" & stage=$!; wait "$stage"; }

run sh "$root/squeeze/squeeze.sh" digits
run sh "$root/recover/recover.sh" digits --snapshot-every 5
run sh "$root/relabel/relabel.sh" digits
run sh "$root/relabel/check.sh" digits
run sh "$root/validate/train.sh" digits
run sh "$root/validate/train.sh" digits --hard-labels
run sh "$root/validate/random_real.sh" digits
run $python -m report.summary --dataset digits
