#!/bin/sh
# Train the teacher.   sh squeeze.sh [dataset[+recipe]] --real-data DIR [--flag value ...]      (no data set: imagenet1k)
# GPUS=4 sh squeeze.sh ... starts four processes, one a GPU; several machines: docs/faq.md
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
case $dataset in                          # recipes (docs/methods.md): what they change of the settings below
    imagenet1k+cda | tiny-imagenet+cda | imagenet21k-p+cda | imagenette+fadrm | imagewoof+fadrm | imagenet1k+fadrm) ;;
    cifar10+rded | cifar100+rded | tiny-imagenet+rded | imagenette+rded | imagewoof+rded | imagenet1k+rded) ;;
    cifar10+fadrm | cifar100+fadrm)       # of CV-DD
        set -- --optimizer adam --lr 1e-3 --weight-decay 1e-4 --batch-size 512 "$@" ;;
    cifar10+fadrm+ | cifar100+fadrm+)     # of several teachers the first is in teacher/, another in teacher_ARCH/
        set -- --arch resnet18,densenet121-32,shufflenet_v2_x0_5-32,mobilenet_v2-32 \
            --optimizer adam --lr 1e-3 --weight-decay 1e-4 --batch-size 512 "$@" ;;
    tiny-imagenet+fadrm)                  # of CV-DD, but for its padded crops
        set -- --lr 0.01 --batch-size 128 --warmup-epochs 0 "$@" ;;
    tiny-imagenet+fadrm+)
        set -- --arch resnet18,shufflenet_v2_x0_5-32,densenet121-32,mobilenet_v2-32 \
            --lr 0.01 --batch-size 128 --warmup-epochs 0 "$@" ;;
    imagenette+fadrm+ | imagewoof+fadrm+ | imagenet1k+fadrm+)
        set -- --arch resnet18,densenet121,shufflenet_v2_x1_0,mobilenet_v2 "$@" ;;
    cifar10+edc | cifar100+edc)           # ours: BatchNorm for instance norm in ConvNets, MobileNetV2 of full width
        case $dataset in cifar10+edc) epochs=10 ;; *) epochs=50 ;; esac
        set -- --arch resnet18,convnet3,mobilenet_v2-32,wrn16_2-32,shufflenet_v2_x0_5-32,convnet1,convnet2,convnet3-w32 \
            --epochs $epochs --lr 0.05 --lr-schedule constant --batch-size 64 --weight-decay 0 --class-statistics "$@" ;;
    tiny-imagenet+edc)
        set -- --arch resnet18,convnet4,mobilenet_v2-64,wrn16_2-64,shufflenet_v2_x0_5-64 \
            --lr 0.1 --warmup-epochs 0 --batch-size 128 --weight-decay 0 --class-statistics "$@" ;;
    cifar10+young)                        # ours: a small network, trained for two epochs
        set -- --arch convnet3 --epochs 2 --lr 0.05 --lr-schedule constant "$@" ;;
    cifar10+best) set -- --epochs 10 "$@" ;;        # ours: for 10 images per class; docs/methods.md
    digits+young) set -- --arch convnet3 "$@" ;;
    digits+best) ;;
    *+*) no_recipe ;;
esac
case ${dataset%%+*} in                        # the published recipes: edit here
    imagenet1k)                           # nothing to train: torchvision's IMAGENET1K_V1 weights are checked
        ;;
    tiny-imagenet)                        # published top-1: 59.57
        set -- --arch resnet18 --epochs 50 --batch-size 256 --lr 0.2 --momentum 0.9 --weight-decay 1e-4 \
            --warmup-epochs 5 --workers 8 "$@" ;;
    cifar100 | cifar10 | mnist | fashion-mnist | svhn)   # published top-1: 78.72 on CIFAR-100
        set -- --arch resnet18 --epochs 200 --batch-size 128 --lr 0.1 --momentum 0.9 --weight-decay 5e-4 \
            --workers 4 "$@" ;;
    digits)
        set -- --arch resnet18 --epochs 6 --batch-size 50 --lr 0.05 --momentum 0.9 --weight-decay 5e-4 \
            --workers 0 "$@" ;;
    imagenette | imagewoof)               # of PSM, whose top-1 are 90.2 (after 150 epochs) and 85
        set -- --arch resnet18 --epochs 200 --batch-size 64 --lr 0.01 --momentum 0.9 --weight-decay 1e-4 \
            --workers 8 "$@" ;;
    imagenet21k-p)                        # ours, for as many epochs as CDA's teacher
        set -- --arch resnet18 --epochs 80 --batch-size 256 --lr 0.2 --momentum 0.9 --weight-decay 1e-4 \
            --warmup-epochs 5 --workers 8 "$@" ;;
    *)                                    # by the number of training images: your own, and rows with a scale
        find_scale "$@"
        case $scale in
            small)                        # up to 2,000
                set -- --arch resnet18 --epochs 30 --batch-size 32 --lr 0.05 --momentum 0.9 --weight-decay 5e-4 --workers 4 "$@" ;;
            medium)                       # up to 50,000
                set -- --arch resnet18 --epochs 100 --batch-size 128 --lr 0.1 --momentum 0.9 --weight-decay 5e-4 --workers 8 "$@" ;;
            large)
                set -- --arch resnet18 --epochs 50 --batch-size 256 --lr 0.2 --momentum 0.9 --weight-decay 1e-4 --warmup-epochs 5 --workers 8 "$@" ;;
        esac ;;
esac
exec $run squeeze.squeeze --dataset "$dataset" "$@"
