#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh squeeze/squeeze.sh digits+best --name digits_ipc1_best
sh recover/pick.sh digits+best --exp-name images --name digits_ipc1_best --ipc-end 1
sh relabel/relabel.sh digits+best --name digits_ipc1_best --epochs 300
sh validate/train.sh digits+best --name digits_ipc1_best --epochs 300 --seeds 0-2
sh validate/train.sh digits+best --hard-labels --name digits_ipc1_best --epochs 300 --seeds 0-2
sh validate/random_real.sh digits+best --name digits_ipc1_best --seeds 0-2
