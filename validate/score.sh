#!/bin/sh
# LRS and ARS of DD-Ranking: what the images are worth, apart from labels and augmentation.
#   sh score.sh [dataset] --real-data DIR [--flag value ...]      (no data set: imagenet1k; after relabel.sh and train.sh)
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
exec $run validate.score --dataset "$dataset" "$@"
