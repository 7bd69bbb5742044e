"""--evaluate: measure the network in a checkpoint, and nothing else."""
from sre2l.data.flags import override
from sre2l.data.real_images import read_val
from sre2l.nets.evaluation import evaluate
from sre2l.nets.precision import memory_format_of, start_device
from sre2l.nets.teacher import describe_fall, load_teacher
from sre2l.run.flags import refuse_useless
from sre2l.run.processes import start


def evaluate_checkpoint(args, spec):
    """Print top-1 and top-5 of any student's checkpoint. Raises UserError for flags that would do nothing."""
    useless = ("compile", "tensorboard", "hard_labels", "overwrite", "protocol", "ema")
    refuse_useless(args, useless, "--evaluate only measures a checkpoint")
    device, precision = start_device(args.device, args.precision, args.deterministic, training=False)
    start(device)
    student = load_teacher(spec, args.evaluate, args.model, args.stem)
    spec = override(spec, args, size=student.size)
    student.check_takes(spec.size)
    val = read_val(spec, args.val_dir, args.classes, student.class_names or spec.class_names,
                   order=args.class_order)
    network = student.network.to(device, memory_format=memory_format_of(device))
    top1, top5 = evaluate(network, val, student.mean, student.std, device, precision=precision)
    print(f"{args.evaluate} ({student.arch}): top1 {top1:.2f}%  top5 {top5:.2f}% on {len(val)} images of "
          f"{val.root}{describe_fall(student, top1, len(val), args.classes)}")
