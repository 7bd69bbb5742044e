#!/bin/sh
# Pick real images: a start for recover, or a control.   sh pick.sh [dataset[+recipe]] --real-data DIR [--flag value ...]
# The random control of a run is --score random. GPUS=4 sh pick.sh ... starts four processes; no data set: imagenet1k
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/sre2l/run/env.sh"
case ${1:-} in "" | -*) dataset=imagenet1k ;; *) dataset=$1; shift ;; esac
case $dataset in                          # recipes (docs/methods.md): what they change of the settings below
    cifar10+rded | cifar100+rded | tiny-imagenet+rded)      # picked images are the set: nothing is recovered
        set -- --pick easiest --most 300 --exp-name images --ipc-end 10 "$@" ;;
    imagenette+rded | imagewoof+rded | imagenet1k+rded)
        set -- --pick easiest --grid 2 --most 300 --exp-name images --ipc-end 10 "$@" ;;
    *+fadrm | *+fadrm+) set -- --ipc-end 10 "$@" ;;
    *+edc) set -- --score random --seed 1 --ipc-end 10 "$@" ;;      # others than those of the random control
    digits+best) set -- --pick easiest --exp-name images "$@" ;;    # ours, by the search in results/: nothing is recovered
    *+young | *+best) set -- --crops 0 --ipc-end 10 "$@" ;;      # ours
    *+*) no_recipe ;;
esac
case ${dataset%%+*} in                        # one crop an image, of medium difficulty, as in SRe2L++, CV-DD and FADRM: edit here
    imagenet1k | imagenet100 | imagenet21k-p)   # RDED: --pick easiest --grid 2. It scores 300 images of a class
        set -- --score confidence --pick medium --crops 5 --grid 1 --most 300 --ipc-end 50 "$@" ;;
    tiny-imagenet | cifar100 | cifar10)
        set -- --score confidence --pick medium --crops 5 --grid 1 --ipc-end 50 "$@" ;;
    mnist | fashion-mnist | svhn)         # whole images: a part of a digit is another one (ours)
        set -- --score confidence --pick medium --crops 0 --grid 1 --ipc-end 50 "$@" ;;
    digits)
        set -- --score confidence --pick medium --crops 0 --grid 1 --ipc-end 10 "$@" ;;
    imagenette | imagewoof)
        set -- --score confidence --pick medium --crops 5 --grid 1 --ipc-end 50 "$@" ;;
    *)                                    # by the number of training images: your own, and rows with a scale
        find_scale "$@"
        case $scale in
            small | medium)               # up to 2,000, up to 50,000
                set -- --score confidence --pick medium --crops 5 --grid 1 --ipc-end 10 "$@" ;;
            large)
                set -- --score confidence --pick medium --crops 5 --grid 1 --most 300 --ipc-end 50 "$@" ;;
        esac ;;
esac
exec $run recover.pick --dataset "$dataset" "$@"
