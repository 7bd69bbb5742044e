#!/bin/sh
# What labels weigh and what they give, on the digits: three students for each codec and each part of the epochs.
# Labels of 100 images and 60 epochs; the last command writes digits.json here, the tables and img/labels.png.
set -e
cd "$(dirname "$0")/../.."
name=labels_digits
run=runs/$name

labels() { form=$1; shift
    sh relabel/relabel.sh digits --name $name --fkd-path $run/labels_$form "$@"; }
student() { form=$1; shift
    sh validate/train.sh digits --name $name --seeds 0-2 --fkd-path $run/labels_$form --output-dir $run/students/$form "$@"; }

sh squeeze/squeeze.sh digits --name $name
sh recover/recover.sh digits --name $name
. results/labels/forms.sh
python3 -m report.labels --run $run
