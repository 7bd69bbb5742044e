#!/bin/sh
# Break files of every kind in every way, and print what was caught, repaired and missed.
#   sh stress/damage.sh [--flips 10000] [--seed 0]
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tests/setup.sh"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec $python -m stress.damage "$@"
