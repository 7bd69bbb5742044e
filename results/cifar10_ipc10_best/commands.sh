#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh squeeze/squeeze.sh cifar10+young --real-data data/cifar10 --name fc3 --precision bf16 --epochs 4 --keep-epochs 1,2,4
sh recover/pick.sh cifar10+best --name best --real-data data/cifar10 --teacher runs/fc3/teacher/teacher.e2.pth
sh recover/recover.sh cifar10+best --name best --real-data data/cifar10 --teacher runs/fc3/teacher/teacher.e2.pth --precision bf16
sh relabel/relabel.sh cifar10+best --name best --real-data data/cifar10 --teacher runs/fc3/teacher/teacher.e2.pth
sh validate/train.sh cifar10+best --name best --real-data data/cifar10 --precision bf16 --eval-every 100
