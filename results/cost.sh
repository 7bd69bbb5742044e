#!/bin/sh
# What steps of recover buy, from noise and from real images: ten per class, on the 5,000 held-out training images. On a CPU core in an
# hour: the networks are ConvNet-3, the teacher's four epochs, the students' 200. Steps times 100 are image-iterations.
# Real images under data/cifar10.
set -e
cd "$(dirname "$0")/.."
name=cifar10_cost
run=runs/$name
teacher="--teacher runs/cifar10-c4/teacher/teacher.pth"

student() {      # the images $run/KEY/images -> results in $run/students/KEY
    sh relabel/relabel.sh cifar10+best --name $name $teacher --epochs 200 --data $run/$1/images --fkd-path $run/labels/$1
    sh validate/train.sh cifar10+best --name $name --epochs 200 --train-dir $run/$1/images --fkd-path $run/labels/$1 \
        --output-dir $run/students/$1 --val-dir data/c10h --model convnet3 --eval-every 200 --seeds 0; }

sh results/held_out.sh data/cifar10 data/c10h
sh squeeze/squeeze.sh cifar10 --name cifar10-c4 --arch convnet3 --real-data data/c10h --epochs 4
sh recover/pick.sh cifar10+best --name $name --real-data data/c10h $teacher --exp-name real0/images
student real0
for steps in 10 50; do
    sh recover/recover.sh cifar10+best --name $name $teacher --init $run/real0/images --blocks $steps,$steps,$steps,$steps \
        --exp-name real$((4 * steps))/images
    student real$((4 * steps))
done
for steps in 125 500 2000; do
    sh recover/recover.sh cifar10 --name $name $teacher --lossless --ipc-end 10 --iteration $steps --exp-name noise$steps/images
    student noise$steps
done
