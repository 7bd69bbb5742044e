"""The published teachers of ImageNet-1K, which are torchvision's: nothing is trained, they are measured."""
from sre2l.data.real_images import read_val
from sre2l.nets.evaluation import evaluate
from sre2l.nets.functions import recorded_name
from sre2l.nets.precision import memory_format_of, start_device
from sre2l.nets.teacher import load_teacher
from sre2l.run.flags import refuse_useless
from sre2l.run.output import print_plan
from sre2l.run.processes import start


def check_torchvision(args, spec):
    """imagenet1k, whose published teachers are torchvision's: load one, and measure it on real images."""
    if args.dry_run:
        note = "nothing to train: IMAGENET1K_V1 weights are checked"
        settings = {"dataset": spec.name, "arch": recorded_name(args.arch)}
        return print_plan(settings, epochs=0, bytes=0, note=note)
    useless = ("compile", "tensorboard", "overwrite", "weights", "keep_epochs", "class_statistics")
    refuse_useless(args, useless, "imagenet1k: torchvision's teacher is only checked")
    device, precision = start_device(args.device, args.precision, args.deterministic, training=False)
    start(device)
    teacher = load_teacher(spec, None, args.arch, args.stem)
    print(f"imagenet1k: the teacher is torchvision's {args.arch} with IMAGENET1K_V1 weights; they load "
          f"(sha256 {teacher.sha256[:12]})")
    if args.real_data:
        val = read_val(spec, args.real_data)
        network = teacher.network.to(device, memory_format=memory_format_of(device))
        top1, top5 = evaluate(network, val, teacher.mean, teacher.std, device, precision=precision)
        print(f"top-1 {top1:.2f}%  top-5 {top5:.2f}% on {len(val)} images of {val.root}")
