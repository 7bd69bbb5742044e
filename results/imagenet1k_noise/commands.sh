#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
root=$PWD; . sre2l/run/env.sh
sh recover/recover.sh imagenet1k --name imagenet1k_noise --arch mobilenet_v2 --classes 0,217,482,491,497,566,569,571,574,701 --ipc-end 5 --iteration 250 --r-bn 0.1
python3 -m report.recognise --name imagenet1k_noise --networks mobilenet_v2,efficientnet_lite0
