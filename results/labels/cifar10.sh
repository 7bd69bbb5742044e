#!/bin/sh
# The same on CIFAR-10, 10 images per class by the recipe cifar10+best, one student of 200 epochs each, whose stem has stride 2.
# Real images under data/cifar10; the last command writes cifar10.json here, the tables and img/labels.png.
set -e
cd "$(dirname "$0")/../.."
name=labels_cifar10
run=runs/$name

labels() { form=$1; shift
    sh relabel/relabel.sh cifar10+best --name $name --epochs 200 --fkd-path $run/labels_$form "$@"; }
student() { form=$1; shift
    sh validate/train.sh cifar10+best --name $name --val-dir data/cifar10 --epochs 200 --eval-every 200 --stem conv3x3-s2 \
        --fkd-path $run/labels_$form --output-dir $run/students/$form "$@"; }

sh squeeze/squeeze.sh cifar10+best --name $name --real-data data/cifar10
sh recover/pick.sh cifar10+best --name $name --real-data data/cifar10
sh recover/recover.sh cifar10+best --name $name --init $run/picked
. results/labels/forms.sh
student phases0.3 --fkd-path $run/labels_keep0.3 --label-draw phases
student falling0.1 --fkd-path $run/labels_keep0.1 --label-draw pool --temperature-schedule step
python3 -m report.labels --run $run
