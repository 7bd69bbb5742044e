#!/bin/sh
# The search for cifar10+best: each setting in turn, students of 200 epochs, measured on held-out training images.
# The figures in results.json are from 26,000 training images (teachers of 2, 4 and 8 epochs on them, which are as many
# steps as 1, 2 and 4 here) and 2,500 of the held-out ones. Real images under data/cifar10.
set -e
cd "$(dirname "$0")/../.."
real="--name cifar10-search --real-data data/cifar10"
run=runs/cifar10-search
two=$run/teacher/teacher.e2.pth

images() { name=$1; start=$2; shift 2
    sh recover/recover.sh cifar10+best --name cifar10-search --teacher $two --init $run/$start --exp-name $name "$@"; }
labels() { name=$1; images=$2; shift 2
    sh relabel/relabel.sh cifar10+best --name cifar10-search --teacher $two --epochs 200 \
        --data $run/$images --fkd-path $run/labels_$name "$@"; }
student() { name=$1; labels=$2; images=$3; shift 3
    sh validate/train.sh cifar10+best $real --epochs 200 --eval-every 200 \
        --train-dir $run/$images --fkd-path $run/labels_$labels --output-dir $run/students/$name "$@"; }
all() { labels "$1" "$2"; student "$1" "$1" "$2"; }

sh squeeze/squeeze.sh cifar10+best $real --val-fraction 0.1 --arch convnet3,convnet2,wrn16_2-32 --epochs 4 --keep-epochs 1,2,4
three=$two,$run/teacher_convnet2/teacher.e2.pth,$run/teacher_wrn16_2-32/teacher.e2.pth
sh recover/pick.sh cifar10+best $real --score random --exp-name random
for pick in medium hardest; do
    sh recover/pick.sh cifar10+best $real --teacher $two --pick $pick --exp-name $pick
done

# The images; all labels from the ConvNet of two epochs in train mode
for start in random medium hardest; do labels $start $start; done
student random random random --seeds 0-1
for start in medium hardest; do student $start $start $start; done
images steps600 random --blocks 150,150,150,150
images best random
images steps5000 random --blocks 1250,1250,1250,1250
images nomerge random --blocks 2000 --merge 0
images fromMedium medium
images oldTeacher random --teacher $run/teacher/teacher.e4.pth
images threeTeachers random --teacher $three
images lr0.1 random --lr 0.1
for name in steps600 best steps5000 nomerge fromMedium oldTeacher threeTeachers lr0.1; do all $name $name; done

# Who labels the images `best`, and how
labels eval best --no-batch-statistics
labels threeEval best --teacher $three --no-batch-statistics
labels young best --teacher $run/teacher/teacher.e1.pth
labels old best --teacher $run/teacher/teacher.e4.pth
labels three best --teacher $three
for name in eval threeEval young old three; do student $name $name best; done

# What the student sees, and how it is trained
labels batch25 best --batch-size 25
labels batch50 best --batch-size 50
labels mixup best --mix-type mixup --mixup 0.8
labels crop0.25 best --min-scale-crops 0.25
for name in batch25 batch50 mixup crop0.25; do student $name $name best; done
student ema best best --ema 0.99
student mse best best --loss mse --class-weight 0.025
student T4 best best -T 4
student ssrs best best --lr-schedule ssrs
student cosine best best --slowdown 1
student lr0.002 best best --adamw-lr 2e-3
