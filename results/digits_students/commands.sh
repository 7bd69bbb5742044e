#!/bin/sh
# Students of four networks, from images and labels as those of digits_ipc1_best.
set -e
cd "$(dirname "$0")/../.."
name="--name digits_students"
sh squeeze/squeeze.sh digits+best $name
sh recover/pick.sh digits+best $name --ipc-end 1
sh relabel/relabel.sh digits+best $name --epochs 300
for model in resnet18 convnet3 mobilenet_v2-32 shufflenet_v2_x0_5-32; do
    sh validate/train.sh digits+best $name --epochs 300 --model $model --seeds 0-2 --eval-every 300
done
