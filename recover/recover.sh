#!/bin/sh
# Recover images from the teacher.   sh recover.sh [dataset] [--flag value ...]      (no data set: imagenet1k)
# GPUS=4 sh recover.sh ... starts four processes, one a GPU; several machines: docs/faq.md
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
case $dataset in                          # the published settings: edit here
    imagenet1k | imagenet100)
        set -- --iteration 4000 --batch-size 100 --lr 0.25 --r-bn 0.01 --first-bn-multiplier 10 --jitter 32 \
            --ipc-start 0 --ipc-end 50 "$@" ;;
    tiny-imagenet)
        set -- --iteration 4000 --batch-size 100 --lr 0.1 --r-bn 1.0 --first-bn-multiplier 10 --jitter 4 --signed-jitter \
            --ipc-start 0 --ipc-end 50 "$@" ;;
    cifar100 | cifar10 | mnist | fashion-mnist | svhn)
        set -- --iteration 1000 --batch-size 100 --lr 0.25 --r-bn 0.01 --first-bn-multiplier 10 --jitter 4 --no-crop-flip \
            --ipc-start 0 --ipc-end 50 "$@" ;;
    digits)
        set -- --iteration 200 --batch-size 100 --lr 0.25 --r-bn 0.3 --first-bn-multiplier 10 --jitter 4 --signed-jitter --no-crop-flip \
            --ipc-start 0 --ipc-end 10 "$@" ;;
    imagenette | imagewoof)               # batches of one image a class, as in SRe2L++
        set -- --iteration 4000 --batch-size 10 --lr 0.25 --r-bn 0.01 --first-bn-multiplier 10 --jitter 32 \
            --ipc-start 0 --ipc-end 50 "$@" ;;
    imagenet21k-p)                        # as in CDA, without its curriculum
        set -- --iteration 2000 --batch-size 100 --lr 0.05 --r-bn 0.25 --first-bn-multiplier 10 --jitter 32 \
            --ipc-start 0 --ipc-end 20 "$@" ;;
    *)                                    # by the number of training images: your own, and rows with a scale
        find_scale "$@"
        case $scale in
            small)                        # up to 2,000
                set -- --iteration 200 --batch-size 100 --lr 0.25 --r-bn 0.05 --first-bn-multiplier 10 --jitter 4 --ipc-end 10 "$@" ;;
            medium)                       # up to 50,000
                set -- --iteration 1000 --batch-size 100 --lr 0.25 --r-bn 0.01 --first-bn-multiplier 10 --jitter 4 --ipc-end 10 "$@" ;;
            large)
                set -- --iteration 4000 --batch-size 100 --lr 0.25 --r-bn 0.01 --first-bn-multiplier 10 --jitter 4 --ipc-end 50 "$@" ;;
        esac ;;
esac
exec $run recover.recover --dataset "$dataset" "$@"
