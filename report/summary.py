"""One table of a run: teacher, student, both controls, bytes and seconds. Also written as runs/<name>/summary.json.

Run: python -m report.summary --dataset digits      (after all stages and both controls; demo.sh ends with it)
"""
from sre2l.run.errors import UserError
from sre2l.data.flags import add_run_flags
from sre2l.run.flags import Parser
from sre2l.run.files import read_json, write_json
from sre2l.run.log import print_plan
from sre2l.run.paths import run_folder
from sre2l.run.start import run_script
from report.page import report_in_words


def collect(run, model):
    """The figures of a run folder -> {name: value}; accuracies are of the last epoch, percent, mean over the seeds."""
    made_by = {f"student_{model}": "train.sh", f"student_{model}_hard": "train.sh with --hard-labels", f"random_real/student_{model}": "random_real.sh"}
    for folder, how in made_by.items():
        if not (run / folder / "results.json").exists():
            raise UserError(f"{run / folder}: no result there yet; run {how} first")
    student, hard, real = (read_json(run / folder / "results.json") for folder in made_by)
    labels = student["protocol"]["labels"]
    seconds = {**student["seconds"], "hard_label_control": hard["seconds"]["validate"],
               "random_real_control": real["seconds"]["relabel"] + real["seconds"]["validate"]}
    teacher_top1 = labels.get("measured_top1") or (labels["teacher"] or {}).get("top1")
    return {"teacher_top1": teacher_top1, "distilled_top1": student["top1"]["mean"],
            "random_real_top1": real["top1"]["mean"], "hard_label_top1": hard["top1"]["mean"], "seeds": len(student["seeds"]),
            "images": labels["num_images"], "image_bytes": student["image_bytes"], "label_bytes": student["label_bytes"],
            "seconds": seconds, "versions": student["versions"]}


def table(name, values):
    """The figures as lines for a terminal."""
    rows = [("teacher, real images", "teacher_top1"), ("student, distilled images, soft labels", "distilled_top1"),
            ("student, random real images, soft labels", "random_real_top1"), ("student, distilled images, hard labels", "hard_label_top1")]
    lines = [f"{name}: {values['images']} images, {values['image_bytes']:,} bytes; labels {values['label_bytes']:,} bytes", ""]
    lines += [f"  {text:<42} " + ("not measured" if values[key] is None else f"{values[key]:6.2f}%") for text, key in rows]
    timed = [f"{stage} {value:.0f}" for stage, value in values["seconds"].items() if value is not None]
    return "\n".join([*lines, "", "  seconds: " + ", ".join(timed)])


def main(args):
    run = run_folder(args)
    if args.dry_run:
        return print_plan(vars(args), output=str(run / "summary.json"))
    values = collect(run, args.model)
    write_json(run / "summary.json", values)
    print(f"\n{table(args.name or args.dataset, values)}\n\nwritten to {run / 'summary.json'}\n{report_in_words(run)}")


def get_args(argv=None):
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--model", default="resnet18", metavar="ARCH", help="the student")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
