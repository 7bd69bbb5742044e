#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
root=$PWD; . sre2l/run/env.sh
sh recover/pick.sh imagenet1k+fadrm --name imagenet1k_fadrm --arch mobilenet_v2 --classes 0,217,482,491,497,566,569,571,574,701 --ipc-end 10 --most 100 --real-data data/imagenette
sh recover/recover.sh imagenet1k+fadrm --name imagenet1k_fadrm --arch mobilenet_v2 --classes 0,217,482,491,497,566,569,571,574,701 --ipc-end 5 --blocks 25@200,25@224,25@200,25@224 --r-bn 0.1
python3 -m report.recognise --name imagenet1k_fadrm --networks mobilenet_v2,efficientnet_lite0
