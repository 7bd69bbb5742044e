#!/bin/sh
# Write a folder's labels in another codec or layout.   sh convert.sh [dataset] [--flag value ...]      (no data set: imagenet1k)
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
exec $python -m relabel.convert --dataset "$dataset" "$@"
