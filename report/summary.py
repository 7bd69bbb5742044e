"""One table of a run: teacher, student, its controls, bytes and seconds.

Run: python3 -m report.summary --dataset digits      (after all stages and both controls, as in demo.sh)
Result: the table on the screen, runs/<name>/summary.json, and report.html anew.
"""
from report.data import describe_measure, is_of_earlier_images, kind_of, maker_of, teacher_top1
from report.page import write_report
from sre2l.data.flags import add_run_flags
from sre2l.run.errors import UserError
from sre2l.run.files import read_json, write_json
from sre2l.run.flags import Parser
from sre2l.run.log import stage_seconds
from sre2l.run.output import print_plan
from sre2l.run.paths import run_folder, student_name
from sre2l.run.start import run_script

ACCURACIES = {"teacher_top1": "teacher, real images",
              "distilled_top1": "student, distilled images, soft labels",
              "random_real_top1": "student, random real images, soft labels",
              "picked_real_top1": "student, picked real images, soft labels",
              "hard_label_top1": "student, distilled images, hard labels"}


def read_results(folder, script):
    """results.json of a student. Raises UserError, which names the script to run, where it is not there."""
    if not (folder / "results.json").exists():
        raise UserError(f"{folder}: no result there yet; run {script} first")
    return read_json(folder / "results.json")


def collect(run, model):
    """The figures of a run folder -> {name: value}.

    Accuracies are of the last epoch, percent, mean over the seeds."""
    # What a student's figures are called: the script that trains it, where its labels are, its own folder.
    name = student_name(model)
    students = {"distilled": ("train.sh", run, name),
                "hard_label": ("train.sh with --hard-labels", run, f"{name}_hard"),
                "random_real": ("random_real.sh", run / "random_real", name)}
    if (run / "picked_real").exists():  # of a run whose images began as real ones
        students["picked_real"] = ("random_real.sh with --picked", run / "picked_real", name)
    found = {key: read_results(folder / own, script) for key, (script, folder, own) in students.items()}
    for key, (script, folder, _) in students.items():
        if is_of_earlier_images(found[key]["protocol"], folder / "labels"):
            raise UserError(f"{folder}: a student was trained on other images than the labels there belong "
                            f"to now; run {script} again, with --overwrite")

    student = found["distilled"]
    seconds = {"pick": stage_seconds(run / "picked.metrics.jsonl")} if "picked_real" in found else {}
    seconds |= {maker_of(run / "images") if stage == "recover" else stage: value
                for stage, value in student["seconds"].items()}
    for key in [*found][1:]:  # of a control its own stages; None where the metrics file of one is gone
        own = ("validate",) if key == "hard_label" else ("relabel", "validate")
        parts = [found[key]["seconds"].get(stage) for stage in own]
        seconds[f"{key}_control"] = None if None in parts else sum(parts)
    labels = student["protocol"]["labels"]
    return {"teacher_top1": teacher_top1(labels)[0],
            **{f"{key}_top1": results["top1"]["mean"] for key, results in found.items()},
            "seeds": len(student["seeds"]), "chance_top1": 100 / student["protocol"]["num_classes"],
            "val_images": (student["protocol"]["val"] or {}).get("num_images"),
            "images": labels["num_images"],
            "image_bytes": student["image_bytes"], "label_bytes": student["label_bytes"],
            "seconds": seconds, "versions": student["versions"]}


def table(name, values, images):
    """The figures as lines for a terminal. images: what the set's own are, as kind_of says it."""
    lines = [f"{name}: {values['images']} images, {values['image_bytes']:,} bytes; "
             f"labels {values['label_bytes']:,} bytes", ""]
    for key, text in ACCURACIES.items():
        if key not in values:  # nothing was picked
            continue
        text = text.replace("distilled images", images)
        lines.append(f"  {text:<42} " + ("not measured" if values[key] is None else f"{values[key]:6.2f}%"))
    lines.append(f"  {describe_measure(values['chance_top1'], values['val_images'])}")
    timed = [f"{stage} {value:.0f}" for stage, value in values["seconds"].items() if value is not None]
    return "\n".join([*lines, "", "  seconds: " + ", ".join(timed)])


def main(args):
    run = run_folder(args)
    if args.dry_run:
        return print_plan(vars(args), output=str(run / "summary.json"))
    values = collect(run, args.model)
    write_json(run / "summary.json", values)
    print(f"\n{table(args.name or args.dataset, values, kind_of(run / 'images'))}\n")
    print(f"written to {run / 'summary.json'}\nreport: {write_report(run)}")


def make_parser():
    parser = Parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--model", default="resnet18", metavar="ARCH", help="the student")
    return parser


def get_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    run_script(main, get_args)
