#!/bin/sh
# The whole method on a data set, with a check, two controls and a report; the same command again continues.
#   sh run.sh NAME [--real-data DIR] [--flag value ...]
# A flag goes to every stage that has it; --recover.lr 0.1 goes to recover alone. --dry-run tells minutes and bytes.
set -e
root=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
    "" | -*) echo "usage: sh run.sh NAME [--real-data DIR] [--flag value ...]" >&2; exit 2 ;;
esac
dataset=$1
shift
. "$root/sre2l/run/setup.sh"
exec $python -m report.chain --dataset "$dataset" "$@"
