#!/bin/sh
# Control: random real images instead of recovered ones, labelled and validated with the settings of the run.
# With --picked: the real images of recover/pick.sh.
#   sh random_real.sh [dataset] --real-data DIR [--flag value ...]      (no data set: imagenet1k; after relabel.sh and train.sh)
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
exec $run validate.random_real --dataset "$dataset" "$@"
