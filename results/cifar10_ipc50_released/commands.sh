#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh squeeze/squeeze.sh cifar10 --name cifar10-t25 --real-data data/cifar10 --precision fp16 --workers 2 --epochs 25
sh recover/recover.sh cifar10 --name ipc50-released --teacher runs/cifar10-t25/teacher/teacher.pth --ipc-end 50
sh relabel/relabel.sh cifar10 --name ipc50-released --teacher runs/cifar10-t25/teacher/teacher.pth --workers 0 --batch-statistics
sh validate/train.sh cifar10 --name ipc50-released --val-dir data/cifar10 --precision bf16 --eval-every 50 --workers 0
