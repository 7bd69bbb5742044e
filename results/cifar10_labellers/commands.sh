#!/bin/sh
# Who labels best, by the number of images: ResNet-18 students, on the 5,000 held-out training images.
# Real images under data/cifar10; networks in fp16, so on a GPU.
set -e
cd "$(dirname "$0")/../.."
sh results/held_out.sh data/cifar10 data/c10h
real="--real-data data/c10h"
run=runs/labellers
of() { echo "$@" | sed 's#[^ ,]*#runs/cifar10-&/teacher/teacher.pth#g'; }      # a network's file, or several

young() { sh squeeze/squeeze.sh cifar10+young --name cifar10-c$1 $real --epochs $1 --lr-schedule cosine --precision $2; }
young 6 bf16
young 20 fp16
for epochs in 4 10 20; do sh squeeze/squeeze.sh cifar10 --name cifar10-r$epochs $real --epochs $epochs --precision fp16; done
sh squeeze/squeeze.sh cifar10 --name cifar10-w10 $real --epochs 10 --precision fp16 --arch wrn16_2-32

name="--name labellers"
recover() { images=$1; teacher=$2; shift 2                # KEY TEACHER, flags of pick -> $run/images/KEY/images
    sh recover/pick.sh cifar10+best $name $real --exp-name picked_$images --teacher $(of $teacher) "$@"
    sh recover/recover.sh cifar10+best $name --teacher $(of $teacher) --ipc-end $ipc --init $run/picked_$images \
        --syn-data-path $run/images/$images; }
student() { key=$1; images=$2; labeller=$3; seeds=$4      # results in $run/students/KEY
    sh relabel/relabel.sh cifar10+best $name --data $run/$images --fkd-path $run/labels/$key --teacher $(of $labeller) \
        --epochs $epochs --batch-size $batch
    sh validate/train.sh cifar10+best $name --train-dir $run/$images --fkd-path $run/labels/$key --epochs $epochs \
        --output-dir $run/students/$key --val-dir data/c10h --eval-every $epochs --seeds $seeds; }

ipc=1 epochs=3000 batch=10
recover medium1 c6 --ipc-end 1
recover easiest1 c6 --ipc-end 1 --pick easiest
recover grid1 c6 --ipc-end 1 --pick easiest --grid 2
for images in medium easiest grid; do student ipc1/$images images/${images}1/images c6 0-1; done
student ipc1/resnet4 images/medium1/images r4 0
student ipc1/resnet10 images/medium1/images r10 0
student ipc1/convnet20 images/medium1/images c20 0

ipc=10 epochs=1000 batch=25
recover by_c6 c6
recover by_r10 r10
sh recover/pick.sh cifar10+best $name $real --exp-name random10 --score random
student ipc10/convnet6 images/by_c6/images c6 0-1
student ipc10/convnet20 images/by_c6/images c20 0-1
for epochs_of in 4 10 20; do student ipc10/resnet$epochs_of images/by_c6/images r$epochs_of 0-1; done
student ipc10/three images/by_c6/images r10,c20,w10 0-1
student ipc10/own images/by_r10/images r10 0-1
student ipc10/random random10 r10 0

epochs=500 batch=50
sh recover/pick.sh cifar10+best $name $real --exp-name random50 --score random --ipc-end 50
student ipc50/resnet10 random50 r10 0
student ipc50/resnet20 random50 r20 0
student ipc50/three random50 r10,c20,w10 0
