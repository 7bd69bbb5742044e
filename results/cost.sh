#!/bin/sh
# What steps of recover buy, from noise and from real images: ten per class, one teacher and labeller of ten epochs, one student of
# 400 epochs each, whose stem has stride 2, on the 5,000 held-out training images. Steps times 100 are image-iterations.
# Real images under data/cifar10. The teacher is trained in fp16, so on a GPU.
set -e
cd "$(dirname "$0")/.."
name=cifar10_cost
run=runs/$name
teacher="--teacher runs/cifar10-r10/teacher/teacher.pth"

student() {      # the images $run/KEY/images -> results in $run/students/KEY
    sh relabel/relabel.sh cifar10+best --name $name $teacher --epochs 400 --data $run/$1/images --fkd-path $run/labels/$1
    sh validate/train.sh cifar10+best --name $name --epochs 400 --train-dir $run/$1/images --fkd-path $run/labels/$1 \
        --output-dir $run/students/$1 --val-dir data/c10h --stem conv3x3-s2 --eval-every 400 --seeds 0; }

sh results/held_out.sh data/cifar10 data/c10h
sh squeeze/squeeze.sh cifar10 --name cifar10-r10 --real-data data/c10h --precision fp16 --epochs 10
for steps in 250 500 1000 2000 4000; do
    sh recover/recover.sh cifar10 --name $name $teacher --lossless --ipc-end 10 --iteration $steps --exp-name noise$steps/images
    student noise$steps
done
sh recover/pick.sh cifar10+best --name $name --real-data data/c10h $teacher --exp-name real0/images
student real0
for steps in 25 50 125 250 500; do
    sh recover/recover.sh cifar10+best --name $name $teacher --init $run/real0/images --blocks $steps,$steps,$steps,$steps --exp-name real$((4 * steps))/images
    student real$((4 * steps))
done
