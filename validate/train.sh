#!/bin/sh
# Train and measure a student.   sh train.sh [dataset[+recipe]] --val-dir DIR [--flag value ...]      (no data set: imagenet1k)
# GPUS=4 sh train.sh ... starts four processes, one a GPU; several machines: docs/faq.md
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
case $dataset in                          # recipes (docs/methods.md): what they change of the settings below
    imagenet21k-p+cda) ;;                 # of which CDA publishes no student's settings
    *+cda) set -- --protocol cda "$@" ;;
    *+rded) set -- --protocol rded "$@" ;;
    *+fadrm | *+fadrm+) set -- --protocol fadrm "$@" ;;
    *+edc) set -- --protocol edc "$@" ;;
    cifar10+young)                        # ours
        set -- --epochs 300 -T 20 --slowdown 2 "$@" ;;
    cifar10+best) set -- --epochs 1000 -T 20 --slowdown 2 "$@" ;;
    digits+young) set -- --epochs 40 --adamw-lr 1e-3 --slowdown 2 "$@" ;;
    digits+best) ;;
    *+*) no_recipe ;;
esac
case ${dataset%%+*} in                        # the published protocols: edit here
    imagenet1k | imagenet21k-p)           # published top-1, ResNet-18, ImageNet-1K, IPC 50: 46.8
        set -- --model resnet18 --epochs 300 --gradient-accumulation-steps 2 -T 20 \
            --adamw-lr 1e-3 --adamw-weight-decay 0.01 --workers 8 "$@" ;;
    tiny-imagenet)                        # published top-1, ResNet-18, IPC 50: 41.1
        set -- --model resnet18 --epochs 100 --gradient-accumulation-steps 1 -T 20 --kl-t2 --sgd --learning-rate 0.2 \
            --momentum 0.9 --weight-decay 1e-4 --decay-all --warmup-epochs 5 --workers 8 "$@" ;;
    cifar100 | cifar10 | mnist | fashion-mnist | svhn)   # published top-1, ResNet-18, CIFAR-100, IPC 50: 49.4
        set -- --model resnet18 --epochs 400 --gradient-accumulation-steps 1 -T 30 \
            --adamw-lr 1e-3 --adamw-weight-decay 0.01 --decay-all --workers 4 "$@" ;;
    digits)
        set -- --model resnet18 --epochs 60 --gradient-accumulation-steps 1 -T 20 \
            --adamw-lr 2e-3 --adamw-weight-decay 0.01 --workers 0 "$@" ;;
    imagenette | imagewoof)               # as in SRe2L++, which labels with the teacher in train mode
        set -- --model resnet18 --epochs 300 --gradient-accumulation-steps 2 -T 20 \
            --adamw-lr 5e-4 --adamw-weight-decay 0.01 --workers 4 "$@" ;;
    *)                                    # by the number of training images: your own, and rows with a scale
        find_scale "$@"
        case $scale in
            small)                        # up to 2,000
                set -- --model resnet18 --epochs 60 --gradient-accumulation-steps 1 -T 20 --adamw-lr 1e-3 --workers 4 "$@" ;;
            medium)                       # up to 50,000
                set -- --model resnet18 --epochs 300 --gradient-accumulation-steps 1 -T 20 --adamw-lr 1e-3 --workers 4 "$@" ;;
            large)
                set -- --model resnet18 --epochs 300 --gradient-accumulation-steps 1 -T 20 --adamw-lr 1e-3 --workers 8 "$@" ;;
        esac ;;
esac
exec $run validate.train --dataset "$dataset" "$@"
