#!/bin/sh
# The commands of this row, in order; real images, where the data set is not built in, under data/.
set -e
cd "$(dirname "$0")/../.."
sh squeeze/squeeze.sh digits+best --name digits_ipc1_best
sh recover/pick.sh digits+best --exp-name images --name digits_ipc10_best --teacher runs/digits_ipc1_best/teacher/teacher.pth
sh relabel/relabel.sh digits+best --name digits_ipc10_best --teacher runs/digits_ipc1_best/teacher/teacher.pth
sh validate/train.sh digits+best --name digits_ipc10_best --seeds 0-2 --eval-every 60
sh validate/train.sh digits+best --hard-labels --name digits_ipc10_best --seeds 0-2 --eval-every 60
for draw in 1 2 0; do      # of random real images; results.json has all three, 1 and 2 as random_real_1 and random_real_2
    sh validate/random_real.sh digits+best --name digits_ipc10_best --seeds 0-2 --seed $draw --overwrite
done
