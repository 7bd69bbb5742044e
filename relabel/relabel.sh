#!/bin/sh
# Store the teacher's soft labels.   sh relabel.sh [dataset[+recipe]] [--flag value ...]      (no data set: imagenet1k)
# GPUS=4 sh relabel.sh ... starts four processes, one a GPU; several machines: docs/faq.md
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
case $dataset in                          # recipes (docs/methods.md): what they change of the settings below
    imagenet1k+cda) set -- --batch-size 128 "$@" ;;
    tiny-imagenet+cda | imagenet21k-p+cda) ;;
    cifar10+rded)                         # batches for 10 images a class; 10 for 1, 100 for 50
        set -- --epochs 300 --batch-size 50 --mix-type cutmix --crop none "$@" ;;
    cifar100+rded | tiny-imagenet+rded) set -- --epochs 300 --batch-size 100 --mix-type cutmix --crop none "$@" ;;
    imagenette+rded | imagewoof+rded) set -- --batch-size 50 --patch-shuffle 2 --min-scale-crops 0.5 "$@" ;;
    imagenet1k+rded) set -- --batch-size 100 --patch-shuffle 2 --min-scale-crops 0.5 "$@" ;;
    cifar10+fadrm | cifar100+fadrm)
        set -- --epochs 1000 --batch-size 16 --batch-statistics 8 --mix-type cutmix --crop resized "$@" ;;
    cifar10+fadrm+ | cifar100+fadrm+)
        set -- --arch resnet18,densenet121-32,shufflenet_v2_x0_5-32,mobilenet_v2-32 \
            --epochs 1000 --batch-size 16 --batch-statistics 8 --mix-type cutmix --crop resized "$@" ;;
    tiny-imagenet+fadrm) set -- --epochs 300 --batch-size 16 --mix-type cutmix "$@" ;;
    tiny-imagenet+fadrm+)
        set -- --arch resnet18,shufflenet_v2_x0_5-32,densenet121-32,mobilenet_v2-32 \
            --epochs 300 --batch-size 16 --batch-statistics 8 --mix-type cutmix "$@" ;;
    imagenette+fadrm | imagewoof+fadrm) set -- --batch-statistics 5 "$@" ;;
    imagenet1k+fadrm) set -- --batch-size 16 --batch-statistics 8 "$@" ;;
    imagenette+fadrm+)
        set -- --arch resnet18,densenet121,shufflenet_v2_x1_0,mobilenet_v2 --batch-statistics 5 "$@" ;;
    imagewoof+fadrm+ | imagenet1k+fadrm+)
        set -- --arch resnet18,densenet121,shufflenet_v2_x1_0,mobilenet_v2 --batch-size 16 --batch-statistics 8 "$@" ;;
    cifar10+edc)
        set -- --arch resnet18,convnet3,mobilenet_v2-32,wrn16_2-32,shufflenet_v2_x0_5-32,convnet1,convnet2,convnet3-w32 \
            --epochs 1000 --batch-size 25 --mix-type cutmix --crop resized --augment randaugment "$@" ;;
    cifar100+edc)                         # five of the eight that recover takes
        set -- --arch resnet18,convnet3,mobilenet_v2-32,wrn16_2-32,shufflenet_v2_x0_5-32 --epochs 1000 --batch-size 50 \
            --mix-type cutmix --crop resized --min-scale-crops 0.5 --augment randaugment "$@" ;;
    tiny-imagenet+edc)
        set -- --arch resnet18,convnet4,mobilenet_v2-64,wrn16_2-64,shufflenet_v2_x0_5-64 \
            --epochs 300 --batch-size 100 --mix-type cutmix --min-scale-crops 0.5 --augment randaugment "$@" ;;
    cifar10+young)
        set -- --epochs 300 --batch-size 10 --batch-statistics --mix-type cutmix --crop resized "$@" ;;
    cifar10+best)
        set -- --epochs 1000 --batch-size 25 --batch-statistics --mix-type cutmix --crop resized "$@" ;;
    digits+young) set -- --epochs 40 --batch-size 10 --batch-statistics "$@" ;;
    digits+best) ;;                       # at one image per class five times the epochs: docs/methods.md
    *+*) no_recipe ;;
esac
case ${dataset%%+*} in                        # the published settings: edit here
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
