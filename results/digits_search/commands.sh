#!/bin/sh
# The search for digits+best: each setting in turn, measured on 200 of the 1,000 training images, which no teacher has seen.
set -e
cd "$(dirname "$0")/../.."
name="--name digits-search"
run=runs/digits-search
big=$run/teacher_resnet18/teacher.pth

pick() { images=$1; shift; sh recover/pick.sh digits $name --exp-name $images "$@"; }
optimise() { images=$1; shift
    sh recover/recover.sh digits $name --exp-name $images --blocks 50,50,50,50 --merge 0.5 --lr 0.05 --batch-order class --lossless "$@"; }
labels() { key=$1; images=$2; shift 2
    sh relabel/relabel.sh digits $name --teacher $big --epochs $epochs --data $run/$images --fkd-path $run/labels/$key "$@"; }
student() { key=$1; images=$2; shift 2
    sh validate/train.sh digits $name --epochs $epochs --eval-every $epochs --seeds 0-1 --train-dir $run/$images \
        --fkd-path $run/labels/$key --output-dir $run/students/$key "$@"; }
all() { labels "$@" && student "$1" "$2"; }

sh squeeze/squeeze.sh digits $name --val-fraction 0.2 --arch convnet3,resnet18 --keep-epochs 2,3,4,6
for ipc in 1 10; do
    epochs=60; [ $ipc = 1 ] && epochs=300
    pick random$ipc --ipc-end $ipc --score random
    for rank in medium easiest hardest; do pick $rank$ipc --ipc-end $ipc --pick $rank; done
    pick easyr18$ipc --ipc-end $ipc --pick easiest --teacher $big
    optimise opt$ipc --ipc-end $ipc --init $run/easiest$ipc
    optimise optr18$ipc --ipc-end $ipc --init $run/easyr18$ipc --teacher $big
    for images in random medium easiest hardest easyr18; do all ipc$ipc/$images $images$ipc; done
    all ipc$ipc/opt.easiest opt$ipc
    all ipc$ipc/opt.easyr18 optr18$ipc
    all ipc$ipc/r18stat easiest$ipc --batch-statistics
    all ipc$ipc/c3 easiest$ipc --teacher $run/teacher/teacher.pth
    all ipc$ipc/c3stat easiest$ipc --teacher $run/teacher/teacher.pth --batch-statistics
    epochs=$((2 * epochs))
    all ipc$ipc/long easiest$ipc
done
