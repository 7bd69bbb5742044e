#!/bin/sh
# Store the teacher's soft labels.   sh relabel.sh [dataset] [--flag value ...]      (no data set: imagenet1k)
# GPUS=4 sh relabel.sh ... starts four processes, one a GPU; several machines: docs/faq.md
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
case $dataset in                          # the published settings: edit here
    imagenet1k | imagenet21k-p)
        set -- --epochs 300 --batch-size 1024 --mix-type cutmix --cutmix 1.0 --fkd-seed 42 \
            --min-scale-crops 0.08 --max-scale-crops 1 --label-precision fp16 --workers 8 "$@" ;;
    tiny-imagenet)
        set -- --epochs 100 --batch-size 256 --mix-type none --fkd-seed 42 \
            --min-scale-crops 0.08 --max-scale-crops 1 --label-precision fp16 --workers 8 "$@" ;;
    cifar100 | cifar10 | mnist | fashion-mnist | svhn)
        set -- --epochs 400 --batch-size 128 --mix-type mixup --mixup 0.8 --fkd-seed 42 \
            --padding 4 --label-precision fp16 --workers 4 "$@" ;;
    digits)
        set -- --epochs 60 --batch-size 50 --mix-type cutmix --cutmix 1.0 --fkd-seed 42 \
            --padding 4 --label-precision fp16 --workers 0 "$@" ;;
    imagenette | imagewoof)
        set -- --epochs 300 --batch-size 10 --mix-type cutmix --cutmix 1.0 --fkd-seed 42 \
            --min-scale-crops 0.08 --max-scale-crops 1 --label-precision fp16 --workers 4 "$@" ;;
    *)                                    # by the number of training images: your own, and rows with a scale
        find_scale "$@"
        case $scale in
            small)                        # up to 2,000
                set -- --epochs 60 --batch-size 10 --mix-type cutmix --cutmix 1.0 --label-precision fp16 --workers 4 "$@" ;;
            medium)                       # up to 50,000
                set -- --epochs 300 --batch-size 20 --mix-type cutmix --cutmix 1.0 --label-precision fp16 --workers 4 "$@" ;;
            large)
                set -- --epochs 300 --batch-size 256 --mix-type cutmix --cutmix 1.0 --label-precision fp16 --workers 8 "$@" ;;
        esac ;;
esac
exec $run relabel.relabel --dataset "$dataset" "$@"
