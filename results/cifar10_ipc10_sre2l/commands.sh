#!/bin/sh
# The commands of this row, in order; real images under data/cifar10. The teacher sees nine tenths of the training
# images, data/c10h: settings were chosen on the last tenth.
set -e
cd "$(dirname "$0")/../.."
sh results/held_out.sh data/cifar10 data/c10h
sh squeeze/squeeze.sh cifar10 --name cifar10-r10 --real-data data/c10h --precision fp16 --epochs 10
name="--name cifar10-sre2l-ipc10"
sh recover/recover.sh cifar10 $name --teacher runs/cifar10-r10/teacher/teacher.pth --ipc-end 10
sh relabel/relabel.sh cifar10 $name --teacher runs/cifar10-r10/teacher/teacher.pth --batch-statistics
sh validate/train.sh cifar10 $name --val-dir data/cifar10 --eval-every 400 --seeds 0-2
sh validate/train.sh cifar10 $name --val-dir data/cifar10 --eval-every 400 --seeds 0-2 --hard-labels
sh validate/random_real.sh cifar10 $name --real-data data/cifar10
