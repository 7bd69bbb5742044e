#!/bin/sh
# The whole method on a data set, with a check, two controls and a report; the same command again continues.
#   sh run.sh NAME[+RECIPE] [--real-data DIR] [--flag value ...]
# Stages: squeeze, pick, recover, relabel, check, validate, random_real, summary. A flag goes to every stage that has
# it; --recover.lr 0.1 goes to recover alone. sh recover/recover.sh --help lists recover's, and so on.
#   --start noise  what images begin as: noise, picked (with --init picked), only-picked (recover is left out)
#   --dry-run      tells minutes and bytes, and stops
#   --name NAME2   keeps another run of the same data set, in runs/NAME2
#   --overwrite    starts every stage afresh; --validate.overwrite the students alone
set -e
root=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
    -h | --help) sed -n '2,9s/^# //p' "$0"; exit ;;
    "" | -*) echo "usage: sh run.sh NAME[+RECIPE] [--real-data DIR] [--flag value ...]" >&2; exit 2 ;;
esac
dataset=$1
shift
. "$root/sre2l/run/setup.sh"
case $dataset in                          # what a recipe's images begin as
    *+rded | digits+best) start=only-picked ;;
    *+fadrm | *+fadrm+ | *+edc | *+young | *+best) start=picked ;;
    *) start=noise ;;
esac
exec $python -m report.chain --dataset "$dataset" --start $start "$@"
