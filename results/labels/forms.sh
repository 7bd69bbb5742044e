# The forms that digits.sh and cifar10.sh compare, by their functions labels and student: every codec, and parts of the epochs.
for form in fp16 uint8 topk:5 topk:2 topk:1 none; do
    packed=$(test $form != fp16 || echo --packed)
    labels $form --codec $form $packed
    student $form
done
for part in 1 0.3 0.1 0.03; do              # of 60 epochs 60, 18, 6 and 2, from which 60 are drawn
    labels keep$part --packed --keep $part
    student keep$part --label-draw pool
done
