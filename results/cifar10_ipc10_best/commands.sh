#!/bin/sh
# The commands of this row, in order; real images under data/cifar10. The teacher sees nine tenths of the training
# images, data/c10h: settings were chosen on the last tenth.
set -e
cd "$(dirname "$0")/../.."
sh results/held_out.sh data/cifar10 data/c10h
sh squeeze/squeeze.sh cifar10 --name cifar10-r10 --real-data data/c10h --precision fp16 --epochs 10
name="--name cifar10_ipc10_best"
student="--val-dir data/cifar10 --precision bf16 --eval-every 500"
sh recover/pick.sh cifar10+best $name --real-data data/c10h --teacher runs/cifar10-r10/teacher/teacher.pth
sh recover/recover.sh cifar10+best $name --teacher runs/cifar10-r10/teacher/teacher.pth
sh relabel/relabel.sh cifar10+best $name --teacher runs/cifar10-r10/teacher/teacher.pth
sh validate/train.sh cifar10+best $name $student --seeds 0-2
sh validate/random_real.sh cifar10 $name --real-data data/cifar10 --seeds 0-1
sh validate/random_real.sh cifar10 $name --picked --seeds 0
