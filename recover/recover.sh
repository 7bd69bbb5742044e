#!/bin/sh
# Recover images from the teacher.   sh recover.sh [dataset[+recipe]] [--flag value ...]      (no data set: imagenet1k)
# GPUS=4 sh recover.sh ... starts four processes, one a GPU; several machines: docs/faq.md
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
case $dataset in                          # recipes (docs/methods.md): what they change of the settings below
    tiny-imagenet+cda) set -- --lr 0.4 --r-bn 0.05 --crop-curriculum cosine "$@" ;;
    imagenet1k+cda | imagenet21k-p+cda) set -- --crop-curriculum cosine "$@" ;;
    cifar10+fadrm) set -- --ipc-end 10 --init picked --blocks 500,500,500,500 --merge 0.5 --crop-flip --batch-size 10 --lossless "$@" ;;
    cifar100+fadrm) set -- --ipc-end 10 --init picked --blocks 500,500,500,500 --merge 0.5 --crop-flip --lossless "$@" ;;
    cifar10+fadrm+ | cifar100+fadrm+)
        case $dataset in cifar10+*) batch=10 ;; *) batch=100 ;; esac
        set -- --arch resnet18,densenet121-32,shufflenet_v2_x0_5-32,mobilenet_v2-32 \
            --ipc-end 10 --init picked --blocks 500,500,500,500 --merge 0.5 --crop-flip --batch-size $batch --lossless "$@" ;;
    tiny-imagenet+fadrm)
        set -- --ipc-end 10 --init picked --blocks 500,500 --merge 0.5 --lr 0.01 --r-bn 0.01 --no-signed-jitter --lossless "$@" ;;
    tiny-imagenet+fadrm+)
        set -- --arch resnet18,shufflenet_v2_x0_5-32,densenet121-32,mobilenet_v2-32 \
            --ipc-end 10 --init picked --blocks 500,500,500,500 --merge 0.5 --lr 0.25 --r-bn 0.01 --no-signed-jitter --lossless "$@" ;;
    imagenette+fadrm | imagewoof+fadrm | imagenet1k+fadrm)
        case $dataset in imagenette+*) lr=0.05 ;; *) lr=0.25 ;; esac
        set -- --ipc-end 10 --init picked --blocks 500@200,500@224,500@200,500@224 --merge 0.5 --lr $lr --lossless "$@" ;;
    imagenette+fadrm+ | imagewoof+fadrm+ | imagenet1k+fadrm+)
        set -- --arch resnet18,densenet121,shufflenet_v2_x1_0,mobilenet_v2 \
            --ipc-end 10 --init picked --blocks 500@200,500@224,500@200,500@224 --merge 0.5 --lr 0.25 --lossless "$@" ;;
    cifar10+edc)                          # published for IPC 10: one batch
        set -- --arch resnet18,convnet3,mobilenet_v2-32,wrn16_2-32,shufflenet_v2_x0_5-32,convnet1,convnet2,convnet3-w32 \
            --ipc-end 10 --init picked --iteration 75 --lr 0.05 --crop-flip --jitter 0 --batch-order class --bn-target class:0.5 "$@" ;;
    cifar100+edc)
        set -- --arch resnet18,convnet3,mobilenet_v2-32,wrn16_2-32,shufflenet_v2_x0_5-32,convnet1,convnet2,convnet3-w32 \
            --ipc-end 10 --init picked --iteration 2000 --lr 0.05 --crop-flip --crop-scale 0.5 --jitter 0 \
            --batch-order class --bn-target class:0.5 --lossless "$@" ;;
    tiny-imagenet+edc)
        set -- --arch resnet18,convnet4,mobilenet_v2-64,wrn16_2-64,shufflenet_v2_x0_5-64 \
            --ipc-end 10 --init picked --iteration 2000 --lr 0.05 --r-bn 0.01 --crop-scale 0.5 --jitter 0 \
            --batch-order class --bn-target class:0.5 --lossless "$@" ;;
    cifar10+young)                        # ours
        set -- --ipc-end 10 --init picked --blocks 150,150,150,150 --merge 0.5 --lr 0.05 --crop-flip --batch-order class --lossless "$@" ;;
    cifar10+best)                         # ours, by the search in results/
        set -- --ipc-end 10 --init picked --blocks 500,500,500,500 --merge 0.5 --lr 0.05 --crop-flip --batch-order class --lossless "$@" ;;
    digits+young)
        set -- --ipc-end 10 --init picked --blocks 50,50,50,50 --merge 0.5 --lr 0.05 --batch-order class --lossless "$@" ;;
    *+*) no_recipe ;;
esac
case ${dataset%%+*} in                        # the published settings: edit here
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
