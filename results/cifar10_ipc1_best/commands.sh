#!/bin/sh
# The commands of this row, in order; real images under data/cifar10. The teachers see nine tenths of the training
# images, data/c10h: settings were chosen on the last tenth.
set -e
cd "$(dirname "$0")/../.."
sh results/held_out.sh data/cifar10 data/c10h
sh squeeze/squeeze.sh cifar10+young --name cifar10-c6 --real-data data/c10h --precision bf16 --epochs 6 --lr-schedule cosine
sh squeeze/squeeze.sh cifar10 --name cifar10-r4 --real-data data/c10h --precision fp16 --epochs 4
name="--name cifar10_ipc1_best"
convnet="--teacher runs/cifar10-c6/teacher/teacher.pth"
resnet="--teacher runs/cifar10-r4/teacher/teacher.pth"
sh recover/pick.sh cifar10+best $name --real-data data/c10h $convnet --ipc-end 1 --pick easiest
sh recover/recover.sh cifar10+best $name $convnet --ipc-end 1
sh relabel/relabel.sh cifar10+best $name $resnet --epochs 3000 --batch-size 10
sh validate/train.sh cifar10+best $name --val-dir data/cifar10 --epochs 3000 --eval-every 3000 --seeds 0-2
sh validate/train.sh cifar10+best $name --val-dir data/cifar10 --epochs 3000 --eval-every 3000 --seeds 0-2 --hard-labels
sh validate/random_real.sh cifar10 $name --real-data data/cifar10
sh validate/random_real.sh cifar10 $name --picked
