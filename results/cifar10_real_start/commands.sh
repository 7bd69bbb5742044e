#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh squeeze/squeeze.sh cifar10+young --real-data data/cifar10 --name fc3 --precision bf16 --epochs 4 --keep-epochs 1,2,4
sh recover/pick.sh cifar10+best --name cifar10_real_start --teacher runs/fc3/teacher/teacher.e2.pth --real-data data/cifar10 --ipc-end 1
sh recover/recover.sh cifar10+best --name cifar10_real_start --teacher runs/fc3/teacher/teacher.e2.pth --ipc-end 1 --snapshot-every 20
