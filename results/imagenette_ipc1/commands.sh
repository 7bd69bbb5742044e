#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh squeeze/squeeze.sh imagenette --arch resnet18 --epochs 100 --batch-size 128 --lr 0.1 --momentum 0.9 --weight-decay 5e-4 --workers 8 --name imagenette_ipc1 --real-data data/imagenette --weights IMAGENET1K_V1 --arch mobilenet_v2 --lr 0.01 --epochs 5
sh recover/recover.sh imagenette --iteration 1000 --batch-size 100 --lr 0.25 --r-bn 0.01 --first-bn-multiplier 10 --jitter 4 --ipc-end 10 --name imagenette_ipc1 --real-data data/imagenette --ipc-end 1
sh relabel/relabel.sh imagenette --epochs 300 --batch-size 100 --mix-type cutmix --cutmix 1.0 --label-precision fp16 --workers 4 --name imagenette_ipc1 --real-data data/imagenette
sh validate/train.sh imagenette --model resnet18 --epochs 300 --gradient-accumulation-steps 1 -T 20 --adamw-lr 1e-3 --workers 4 --name imagenette_ipc1 --real-data data/imagenette --seeds 0-2
sh validate/train.sh imagenette --model resnet18 --epochs 300 --gradient-accumulation-steps 1 -T 20 --adamw-lr 1e-3 --workers 4 --hard-labels --name imagenette_ipc1 --real-data data/imagenette --seeds 0-2
sh validate/random_real.sh imagenette --name imagenette_ipc1 --real-data data/imagenette
