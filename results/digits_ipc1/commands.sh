#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh squeeze/squeeze.sh digits --name digits_ipc1
sh recover/recover.sh digits --name digits_ipc1 --snapshot-every 5 --ipc-end 1
sh relabel/relabel.sh digits --name digits_ipc1
sh validate/train.sh digits --name digits_ipc1 --seeds 0-2
sh validate/train.sh digits --name digits_ipc1 --seeds 0-2 --hard-labels
sh validate/random_real.sh digits --name digits_ipc1
