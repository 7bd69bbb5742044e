#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh recover/pick.sh tiny-imagenet --name tiny-imagenet_ipc10_short --teacher data/tiny_teacher/tiny_resnet18.pth --arch data/tiny_teacher/tiny_teacher.py:network --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --real-data data/tiny-imagenet --crops 0 --most 50 --ipc-end 10
sh recover/recover.sh tiny-imagenet --name tiny-imagenet_ipc10_short --teacher data/tiny_teacher/tiny_resnet18.pth --arch data/tiny_teacher/tiny_teacher.py:network --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --ipc-end 10 --init picked --blocks 4,4,4,4 --merge 0.5 --lr 0.05 --lossless
sh relabel/relabel.sh tiny-imagenet --name tiny-imagenet_ipc10_short --teacher data/tiny_teacher/tiny_resnet18.pth --arch data/tiny_teacher/tiny_teacher.py:network --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --epochs 40 --batch-size 50 --mix-type cutmix --batch-statistics
sh validate/train.sh tiny-imagenet --name tiny-imagenet_ipc10_short --val-dir data/tiny-imagenet --protocol rded --epochs 40 --stem torchvision --eval-every 40 --seeds 0
sh validate/random_real.sh tiny-imagenet --name tiny-imagenet_ipc10_short --real-data data/tiny-imagenet --arch data/tiny_teacher/tiny_teacher.py:network --seeds 0
