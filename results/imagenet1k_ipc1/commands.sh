#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh recover/recover.sh imagenet1k --name imagenet1k_ipc1 --arch mobilenet_v2 --classes 0-99 --ipc-end 1 --iteration 1000 --r-bn 0.1 --precision bf16 --snapshot-every 40
root=$PWD; . sre2l/run/env.sh; python3 -m report.recognise --name imagenet1k_ipc1 --networks mobilenet_v2,efficientnet_lite0
