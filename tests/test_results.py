"""results/: a run becomes a row of few files that repeats it, and the tables have the numbers of the rows."""
import hashlib
import importlib
import json
import re
import shlex
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest

from recover.pictures import save_snapshot
from report import collect, plots, rows, tables
from report.rows import RESULTS, Row
from sre2l.data.image_folder import decode
from sre2l.run.errors import UserError
from sre2l.run.files import write_json
from sre2l.run.paths import ROOT
from tests.helpers import launch, refused, run_main
from tests.synthetic_run import TRAIN, log, synthetic_run
from tests.test_launchers import CHAIN, recipes_of, with_python

FOLDERS = sorted(path.parent for path in RESULTS.glob("*/commands.sh"))
SCRIPTS = [*(folder / "commands.sh" for folder in FOLDERS), RESULTS / "protocols.sh", RESULTS / "cost.sh"]
FILES = {"commands.sh", "results.json", "settings.json", "metrics.jsonl", "log.txt",
         "images.tar", "images.sha256", "images.png"}


@pytest.fixture
def row(tmp_path, monkeypatch):
    """A row made of a synthetic run."""
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    collect.collect(synthetic_run(tmp_path / "runs" / "try"), tmp_path / "row")
    return Row("row", "tiny-imagenet", 50)


def test_the_readmes_have_the_tables_that_results_give():
    for path, text in tables.make_pages().items():
        assert path.read_text() == text, "run `python -m report.tables`"


def test_every_folder_is_a_row_of_the_tables():
    values = [value for ablation in rows.ABLATIONS for value in ablation["values"].values()]
    values += [value for _, value in rows.TABLES["steps"]]
    named = {value.partition(":")[0] for value in values}
    named |= {rows.TABLES[kind]["folder"] for kind in ("protocols", "cost")}
    assert {path.name for path in FOLDERS} <= {row.folder for row in rows.ROWS} | named
    assert all(rows.results_of(value) for value in values), "a value without results"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_row_is_small_and_tells_nothing_of_its_machine(folder):
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) <= FILES
    assert sum(sizes.values()) < (1_400_000 if "imagenet1k" in folder.name else 600_000)
    for name in sizes.keys() - {"images.tar", "images.png"}:
        text = (folder / name).read_text()
        assert not re.search(r"(^|[\s\"'=:,(])/(work|tmp|home|root|mnt|data|runs|usr)\b|://", text), name
        host = socket.gethostname()
        assert not re.search(rf"\b{re.escape(host)}\b", text) or len(host) < 4, name


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/images.tar")), ids=lambda path: path.parent.name)
def test_the_images_of_a_row_are_those_whose_hashes_were_recorded(path):
    with tarfile.open(path) as tar:
        found = {name: tar.extractfile(name).read() for name in tar.getnames()}
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in found.items()]
    assert "".join(lines) == path.with_name("images.sha256").read_text()
    assert collect.pack(found) == path.read_bytes()  # nothing of when and by whom it was made


@pytest.fixture
def printing_python(tmp_path):
    """-> a PATH whose python3 prints its arguments in place of running."""
    return with_python(tmp_path / "bin", 'printf "%s\\n" "$@"')


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(RESULTS)))
def test_the_commands_of_a_row_start_stages_that_know_their_flags(
        script, tmp_path, printing_python, monkeypatch):
    """Through the launchers, from anywhere, each to a stage's own parser. A teacher comes first, and images
    have the settings that the row says."""
    monkeypatch.setattr("sre2l.run.flags.check_folders", lambda *paths: None)  # of the user's data
    result = launch(script, cwd=tmp_path, PATH=printing_python)
    assert result.returncode == 0, result.stderr
    found = {}
    made, named = set(), set()  # teachers
    for words in re.split(r"^-m\n", result.stdout, flags=re.M)[1:]:
        module, *flags = words.splitlines()
        args = vars(importlib.import_module(module).get_args(flags))
        found.setdefault(module, args)
        if module == "squeeze.squeeze":
            made.add(args["name"])
        files = (args.get("teacher") or "").split(",")  # what lies in data/ was not made here
        named |= {Path(file).parts[-3] for file in files if Path(file).parts[-4:-3] == ("runs",)}
    assert "squeeze.squeeze" not in list(found)[1:] and found
    if named:
        assert named == made, "a teacher that no command of this row makes, or needs"
    settings = Row(script.parent.name, "any", 1).settings("images", "manifest")
    if settings:
        ours = found["recover.recover" if "r_bn" in settings else "recover.pick"]
        if ours.get("blocks"):
            ours["iteration"] = sum(steps for steps, _ in ours["blocks"])
        keys = {"dataset", "iteration", "lr", "r_bn", "merge", "seed", "batch_size", "pick", "score"}
        known = keys & ours.keys() & settings.keys()
        assert len(known) > 3 and {key: ours[key] for key in known} == {key: settings[key] for key in known}


def test_paths_of_the_run_and_the_project_become_relative(row, tmp_path):
    args = row.read("settings.json")["images"]["args"]
    assert args == {"teacher": "runs/try/teacher/teacher.pth", "name": "runs/try"}
    for name in ("commands.sh", "results.json", "settings.json", "log.txt"):
        assert str(tmp_path) not in (row.path / name).read_text()
    (tmp_path / "a.txt").write_text(f"{ROOT}/runs/x/images 3 / 4 /mnt/disk/val")
    text = collect.read_text(tmp_path / "a.txt", collect.find_places(tmp_path / "runs" / "try"))
    assert text == "runs/x/images 3 / 4 /mnt/disk/val"


def test_real_images_and_the_teacher_of_another_run_get_names_that_others_can_use(tmp_path):
    """Of two folders of real images each keeps its own name: they may hold different images."""
    run = synthetic_run(tmp_path / "runs" / "try")
    teacher = tmp_path / "elsewhere" / "young" / "teacher" / "teacher.e2.pth"
    teacher.parent.mkdir(parents=True)
    (teacher.parent / "log.txt").write_text("")
    text = tmp_path / "a.txt"
    text.write_text("2026-11-22 09:00:00  /old/copy/recover/pick.py --real-data /disk/c10\n"
                    f"{teacher} /disk/c10/train")
    args = {"teacher": f"{teacher},{run}/teacher/teacher.pth", "dataset": "cifar10", "val_dir": "/disk/c10"}
    write_json(run / "picked.args.json", args)
    assert collect.read_text(text, collect.find_places(run)) == (
        "2026-11-22 09:00:00  recover/pick.py --real-data data/cifar10\n"
        "runs/young/teacher/teacher.e2.pth data/cifar10/train")
    write_json(run / "labels.args.json", {**args, "val_dir": "/disk/small"})
    assert "--real-data data/c10\n" in collect.read_text(text, collect.find_places(run))


def test_a_row_has_the_logs_and_settings_of_every_output(row, tmp_path):
    run = tmp_path / "runs" / "try"
    places = collect.find_places(run)
    students = ("student_resnet18", "student_resnet18_hard", "random_real/student_resnet18",
                "picked_real/student_resnet18")
    assert set(row.read("results.json")) == {*students}
    for output in ("teacher", *students):
        assert row.log(output).strip() == collect.read_text(run / output / "log.txt", places).strip()
    assert row.log("images") == "" and row.settings("labels", "manifest")["measured_top1"] == 98.7
    assert [values["epoch"] for values in row.metrics("teacher")] == [1, 2] and row.metrics("none") == []


def test_commands_give_the_flags_that_the_run_had(row, printing_python):
    """Those that the launcher adds are left out of the row, and the launcher hands them to Python again."""
    lines = (row.path / "commands.sh").read_text().splitlines()[4:]
    assert lines == ["sh validate/train.sh digits --hard-labels --name try",
                     "sh validate/train.sh digits --name try"]
    found = launch(*lines[0].split()[1:], PATH=printing_python).stdout.split()
    assert found == ["-m", "validate.train", *TRAIN.split(), "--hard-labels", "--name", "try"]


@pytest.mark.parametrize("stage, typed", (
    ("recover/pick", ["cifar10+rded", "--exp-name", "images", "--name", "a+b"]),
    ("recover/recover", ["cifar10+best", "--name", "a+b", "--ipc-end", "1"]),
    ("relabel/relabel", ["tiny-imagenet+cda", "--teacher", "runs/a b/teacher/teacher.pth"]),
    ("validate/train", ["cifar10+edc", "--seeds", "0-2"]),
    ("validate/random_real", ["digits", "--picked"])))
def test_commands_of_a_recipe_are_what_was_typed(stage, typed, printing_python):
    """Typed again, the flags of a recipe would come before those of the data set, which they change: blocks
    would be refused, and a protocol lose."""
    words = launch(f"{stage}.sh", *typed, PATH=printing_python).stdout.splitlines()[2:]
    log = f"2026-11-22 09:00:00  {stage}.py {shlex.join(words)}\n10 images of 10 classes.py\n"
    assert collect.commands_in(log) == [("2026-11-22 09:00:00", f"sh {stage}.sh {shlex.join(typed)}")]


def test_a_run_that_no_launcher_of_today_would_start_is_repeated_by_python(tmp_path):
    run = synthetic_run(tmp_path / "runs" / "try")
    command = "/somewhere/validate/train.py --dataset digits --epochs 7 --name runs/try"
    (run / "student_resnet18" / "log.txt").write_text(f"2026-11-23 10:00:06  {command}\n")
    assert collect.commands(run).splitlines()[4:] == [
        "root=$PWD; . sre2l/run/env.sh", "sh validate/train.sh digits --hard-labels --name try",
        "python3 -m validate.train --dataset digits --epochs 7 --name try",
        "sh validate/train.sh digits --name try"]


def test_commands_begin_with_the_teacher_of_another_run(tmp_path):
    run = synthetic_run(tmp_path / "runs" / "try")
    teacher = tmp_path / "runs" / "long" / "teacher"
    write_json(run / "labels.args.json", {"teacher": str(teacher / "teacher.pth"), "name": None})
    teacher.mkdir(parents=True)
    added = shlex.join(collect.launcher_words("squeeze/squeeze.sh", "cifar10"))
    command = f"/somewhere/squeeze/squeeze.py {added} --name {tmp_path}/runs/long --epochs 3"
    (teacher / "log.txt").write_text(log("2026-11-22 09:00:00", command, {"python": "3.12"}))
    lines = collect.commands(run).splitlines()[4:]
    assert lines[0] == "sh squeeze/squeeze.sh cifar10 --name long --epochs 3" and len(lines) == 3


def test_thinned_metrics_keep_every_accuracy_and_the_end():
    lines = [{"epoch": i, "loss": 1.0} for i in range(1000)]
    for values in lines[::37]:
        values["top1"] = values["epoch"]
    thinned = collect.thin(lines)
    assert len(thinned) < 200 and thinned[-1]["epoch"] == 999
    assert [values["top1"] for values in thinned if "top1" in values] == list(range(0, 1000, 37))
    assert len(collect.thin(lines, 20)) < 50


@pytest.mark.parametrize("num_batches, num_lines", ((1, 40), (1, 1000), (10, 41), (500, 41)))
def test_thinned_terms_are_of_the_same_batches_at_every_iteration(num_batches, num_lines, row):
    """In groups of five that run side by side, each batch with its own terms: a mean over those kept has no
    steps. The last iteration stays."""
    lines = []
    for first in range(0, num_batches, 5):
        units = range(first, min(first + 5, num_batches))
        lines += [{"unit": unit, "iteration": i, "ce": unit, "r_bn_bn": 1.0}
                  for i in range(num_lines) for unit in units]
        lines += [{"unit": unit, "images": 10} for unit in units]
    thinned = collect.thin(lines)
    assert len(thinned) <= 155
    text = "".join(json.dumps({"output": "images", **values}) + "\n" for values in thinned)
    (row.path / "metrics.jsonl").write_text(text)
    terms = plots.mean_terms(row.metrics("images"))
    assert len({values["ce"] for values in terms.values()}) == 1
    assert max(terms) == num_lines - 1 and len(terms) > 30


def test_a_large_set_gives_some_images_of_ten_classes(tmp_path, monkeypatch):
    run = synthetic_run(tmp_path / "runs" / "try", ipc=4, classes=30)
    monkeypatch.setattr(collect, "IMAGE_BYTES", 10 ** 6)
    every = collect.choose_images(run / "images")
    assert len(every) == 120
    monkeypatch.setattr(collect, "IMAGE_BYTES", sum(path.stat().st_size for path in every) - 1)
    monkeypatch.setattr(collect, "FEW", 3)
    names = [path.name for path in collect.choose_images(run / "images")]
    assert len(names) == 30 and names[:3] == [f"class000_id00{i}.jpg" for i in range(3)]
    assert names[-1] == "class029_id002.jpg"


@pytest.mark.parametrize("dataset, classes, side",
                         [("digits", 10, 32), ("tiny-imagenet", 200, 64), ("imagenet1k", 100, 112)])
def test_pictures_of_the_recovery_show_ten_classes_in_order(tmp_path, dataset, classes, side):
    run = synthetic_run(tmp_path / "runs" / "try", dataset, 1, classes)
    _, settings = collect.collect_json(run)
    files = collect.collect_images(run, settings)
    (tmp_path / "strip.jpg").write_bytes(files["images.snapshots/iteration_000020.jpg"])
    strip = decode(tmp_path / "strip.jpg")
    assert strip.shape == (side, 10 * side, 3)
    levels = [strip[:, i * side:(i + 1) * side].mean() - 40 for i in range(10)]
    wanted = np.arange(10) if classes == 10 else np.array([0, 12, 21, 33, 45, 54, 66, 78, 87, 99]) % 20
    assert np.abs(levels - wanted).max() < 2.5


def test_pictures_of_a_batch_in_the_order_of_classes_show_each_class_once(tmp_path):
    """A batch of 100 of ten images a class, and one of two classes: the order says which is which."""
    for ipc, order in ((10, range(10)), (1, (3, 7))):
        labels = [label for label in order for _ in range(ipc)]
        batch = np.stack([np.full((32, 32, 3), 20 * label, np.uint8) for label in labels])
        save_snapshot(batch, tmp_path, 0)
        settings = {"classes": list(order), "batch_size": 100, "size": 32, "batch_order": "class",
                    "ipc_range": [0, ipc]}
        strip = collect.read_snapshot(tmp_path / "iteration_000000.png", settings)
        assert strip[0, ::32, 0].tolist() == [20 * label for label in order]


def test_a_row_says_what_was_measured(row):
    """What no row of the tables shows yet: a teacher's row, and a stage that ran in two places."""
    assert tables.main_row(row)[3:] == [
        "41.1 +- 0.4", "**66.00 +- 1.25**", "78.00 +- 1.25", "78.00 +- 1.25", "71.00 +- 1.25", "3", "90.50",
        "[row](results/row)"]
    assert tables.main_row(Row("row", "tiny-imagenet", None)) == [
        "Tiny-ImageNet", "-", "ResNet-18 (teacher)", "59.57", "90.50", "", "", "", "1", "",
        "[row](results/row)"]
    assert tables.hardware(row) == "1 CPU thread and NVIDIA H200: squeeze 40; 2 CPU threads: validate 100"
    assert tables.protocol_row(row)[3:5] == ["1.2 kB", "5.7 MB"]


def test_what_is_published_has_a_column_where_it_is_of_any_row(row, monkeypatch):
    best = Row("row", "tiny-imagenet", 50, recipe="best")
    monkeypatch.setattr(tables, "ROWS", [best, row])
    assert "| 50 | ResNet-18 | 41.1 +- 0.4 | **" in tables.readme_tables()
    monkeypatch.setattr(tables, "ROWS", [best])
    lines = tables.readme_tables().splitlines()
    assert "published" not in lines[0] and "| 50 | ResNet-18 | **" in lines[2]


def test_a_row_of_a_recipe_is_called_so_and_its_teacher_is_the_labeller(row):
    """What is published is of SRe2L's settings, and the last teacher of squeeze need not be the one used."""
    best = Row("row", "tiny-imagenet", 50, recipe="best")
    cells = tables.main_row(best)
    assert cells[0] == "Tiny-ImageNet, best" and cells[3] == "none" and cells[-2] == "98.70"
    assert tables.title_in_words(best) == "Tiny-ImageNet, best IPC 50, ResNet-18"


def test_images_by_protocols_are_a_table_and_the_words_are_those_of_rows_json(row, tmp_path, monkeypatch):
    """Collected from a run whose students lie in <images>/<protocol>/: one is missing, and one set's."""
    run = tmp_path / "runs" / "grid"
    for place, top1 in (("best/edc", 50.25), ("best/rded", 47.5), ("real/rded", 40)):
        write_json(run / place / "results.json", {"top1": {"mean": top1, "std": None}})
    collect.collect(run, tmp_path / "grid")
    words = {"folder": "grid", "dataset": "cifar10", "tells": "what it tells",
             "images": {"best": "best", "random": "real", "none": "no"},
             "protocols": {"RDED": "rded", "none": "no", "EDC": "edc"}}
    monkeypatch.setitem(rows.TABLES, "protocols", words)
    assert tables.grid_table().splitlines()[2:] == [
        "| images | RDED | EDC |", "| --- | --- | --- |", "| best | 47.50 | 50.25 |",
        "| random | 40.00 | - |"]


def test_the_cost_of_recover_is_that_of_each_set_of_images(row, tmp_path, monkeypatch):
    """Real images as they were picked cost nothing; a set without a student has no line."""
    run = tmp_path / "runs" / "cost"
    for key, settings, top1 in (("real0", {"source": "data/train"}, 40), ("real8", {"init": {}}, 45.5),
                                ("real4", {"init": {"num_images": 20}, "iteration": 4}, 47.25),
                                ("noise500", {"iteration": 500}, 30)):
        write_json(run / key / "images.manifest.json", {"settings": settings})
        if key != "real8":
            write_json(run / "students" / key / "results.json", {
                "top1": {"mean": top1, "std": None}, "seconds": {"recover": 12.5},
                "protocol": {"labels": {"num_images": 20}}})
    collect.collect(run, tmp_path / "cost")
    about = {"folder": "cost", "dataset": "cifar10", "tells": "what it tells",
             "images": ["real0", "real4", "real8", "noise500"]}
    monkeypatch.setitem(rows.TABLES, "cost", about)
    assert tables.cost_table().splitlines()[4:] == [
        "| real images | 0 | 0 | 0 | 40.00 |", "| real images | 4 | 80 | 12 | 47.25 |",
        "| noise | 500 | 10,000 | 12 | 30.00 |"]


def test_a_row_of_picked_images_is_its_own_control(row):
    """Of a recipe that recovers nothing: its images are the picked ones, and their seconds pick's."""
    settings = row.read("settings.json")
    settings["images"]["manifest"]["settings"]["source"] = "data/cifar10/train"
    write_json(row.path / "settings.json", settings)
    results = row.read("results.json")
    results["student_resnet18"]["seconds"]["recover"] = 5
    write_json(row.path / "results.json", results)
    picked = Row("row", "tiny-imagenet", 50, recipe="rded")
    assert picked.results("picked") == picked.results("soft")
    assert tables.main_row(picked)[6] == "= ours" and "pick 5" in tables.hardware(picked)


def test_rows_say_which_recipe_they_are_of():
    known = {word.partition("+")[2] for launcher in CHAIN for word in recipes_of(launcher)}
    for row in rows.ROWS:
        logs = [row.log(output) for output in ("images", "labels") if row.ipc]
        typed = row.word if row.recipe in known else row.dataset  # without a recipe, flags of its own
        assert {word for log in logs for word in re.findall(r"\.py --dataset (\S+)", log)} <= {typed}, row


def test_what_is_no_row_is_never_replaced(row, tmp_path):
    (row.path / "commands.sh").unlink()
    with pytest.raises(UserError, match="is no row"):
        collect.collect(tmp_path / "runs" / "try", row.path)
    assert "folder of results/" in refused(collect, "--row", "../img")
    assert "no run" in refused(collect, "--name", tmp_path / "gone", "--row", "x")
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(UserError, match="each once"):
        tables.with_tables(tmp_path / "README.md", "")


def test_a_dry_run_writes_nothing(capsys):
    run_main(collect, "--dry-run", "--row", "x")
    assert json.loads(capsys.readouterr().out)["output"] and not (ROOT / "results" / "x").exists()
