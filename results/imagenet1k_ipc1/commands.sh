#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh recover/recover.sh imagenet1k --name imagenet1k_ipc1 --arch mobilenet_v2 --classes 0-9 --ipc-end 1 --batch-size 10 --iteration 1000 --r-bn 0.1 --precision bf16 --snapshot-every 40
