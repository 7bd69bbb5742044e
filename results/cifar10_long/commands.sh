#!/bin/sh
# Who labels, where students are trained for long: 1,000 epochs, a ConvNet-3 as the student, 5,000 held-out training images.
set -e
cd "$(dirname "$0")/../.."
real="--real-data data/cifar10 --val-fraction 0.1"
run=runs/cifar10-long
two=runs/cifar10-two/teacher/teacher.e2.pth
six=$run/teacher/teacher.pth
long="--name cifar10-long"

sh squeeze/squeeze.sh cifar10+young --name cifar10-two $real --precision bf16 --epochs 4 --keep-epochs 1,2,4
sh squeeze/squeeze.sh cifar10+best $long $real --precision bf16
sh recover/pick.sh cifar10+best $long --real-data data/cifar10 --teacher $two
sh recover/pick.sh cifar10 $long --real-data data/cifar10 --score random --crops 0 --ipc-end 10 --exp-name random
sh recover/recover.sh cifar10+best $long --teacher $two --precision bf16
one() { sh relabel/relabel.sh cifar10+best $long --data $run/$2 --fkd-path $run/labels/$1 --teacher $3
    sh validate/train.sh cifar10+best $long --train-dir $run/$2 --fkd-path $run/labels/$1 --output-dir $run/students/$1 \
        --model convnet3 --precision bf16 --eval-every 250; }
one twoEpochs images $two
one sixEpochs images $six
one random random $six

# A ResNet-18 student of the labeller of two epochs, batches of 10, measured on the validation set
old="--name cifar10-old --real-data data/cifar10"
two="--teacher runs/cifar10-old/teacher/teacher.e2.pth"
sh squeeze/squeeze.sh cifar10+young $old --precision bf16 --epochs 4 --keep-epochs 1,2,4
sh recover/pick.sh cifar10+best $old $two
sh recover/recover.sh cifar10+best $old $two --precision bf16
sh relabel/relabel.sh cifar10+best $old $two --batch-size 10
sh validate/train.sh cifar10+best $old --precision bf16 --eval-every 100
