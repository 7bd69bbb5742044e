#!/bin/sh
# Five sets of ten images per class, each labelled and learned by five protocols: one student each. On a CPU core in a few hours:
# the networks are ConvNet-3, the teacher's four epochs, and all students have 200 epochs, of which the protocols have 300 to 1,000.
# Then students of other networks, from one set of images and labels. Real images under data/cifar10. With names only these:
#   sh results/protocols.sh images && sh results/protocols.sh released edc
set -e
cd "$(dirname "$0")/.."
name=cifar10_protocols
run=runs/$name
teacher="--teacher runs/cifar10-c4/teacher/teacher.pth"

images() {      # -> $run/KEY/images
    sh results/held_out.sh data/cifar10 data/c10h
    sh squeeze/squeeze.sh cifar10 --name cifar10-c4 --arch convnet3 --real-data data/c10h --epochs 4
    sh recover/recover.sh cifar10 --name $name $teacher --ipc-end 10 --exp-name sre2l/images
    sh recover/pick.sh cifar10 --name $name --real-data data/c10h --score random --ipc-end 10 --exp-name random/images
    sh recover/pick.sh cifar10+rded --name $name $teacher --real-data data/c10h --exp-name rded/images
    for recipe in fadrm best; do
        sh recover/pick.sh cifar10+$recipe --name $name $teacher --real-data data/c10h --exp-name $recipe/picked
        sh recover/recover.sh cifar10+$recipe --name $name $teacher --init $run/$recipe/picked --exp-name $recipe/images
    done; }

protocol() { key=$1; recipe=$2; shift 2      # what validate's --protocol calls it, who labels and how
    for images in sre2l random rded fadrm best; do
        sh relabel/relabel.sh $recipe --name $name $teacher --data $run/$images/images --fkd-path $run/labels/$images.$key "$@" \
            --epochs 200
        sh validate/train.sh cifar10 --protocol $key --name $name --train-dir $run/$images/images --fkd-path $run/labels/$images.$key \
            --output-dir $run/$images/$key --val-dir data/cifar10 --model convnet3 --epochs 200 --eval-every 200 --seeds 0
    done; }

students() {    # -> $run/students/MODEL; ConvNet-3 is $run/best/rded
    for model in "resnet18 --stem conv3x3-s2" mobilenet_v2-32 shufflenet_v2_x0_5-32; do
        sh validate/train.sh cifar10 --protocol rded --name $name --train-dir $run/best/images --fkd-path $run/labels/best.rded \
            --output-dir $run/students/${model%% *} --val-dir data/cifar10 --model $model --epochs 200 --eval-every 200 --seeds 0
    done; }

for what in ${@:-images released rded fadrm rd3 edc students}; do
    case $what in
    images) images ;;
    released) protocol released cifar10 --batch-size 100 --batch-statistics ;;
    rded) protocol rded cifar10+rded ;;
    fadrm) protocol fadrm cifar10+fadrm ;;
    rd3) protocol rd3 cifar10+rded ;;
    edc) protocol edc cifar10+edc --arch convnet3 ;;
    students) students ;;
    *) echo "$what: images, released, rded, fadrm, rd3, edc or students" >&2; exit 2 ;;
    esac
done
