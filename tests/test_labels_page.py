"""docs/labels.md has the numbers of results/, and students that arrive are in its tables and its picture."""
import importlib
import re

import pytest

from report import labels
from sre2l.run.files import read_json, write_json
from tests.helpers import launch
from tests.test_launchers import with_python


def test_the_page_has_the_tables_that_results_give():
    wanted = labels.with_tables(labels.PAGE, labels.page_tables(), labels.START)
    assert labels.PAGE.read_text() == wanted, "run `python -m report.labels`"


def student(label_bytes, top1, **protocol):
    return {"top1": {"mean": top1, "std": 0.5}, "seeds": {"0": {}, "1": {}}, "label_bytes": label_bytes,
            "protocol": {"dataset": "digits", "epochs": 60, "stem": "conv3x3-s2",
                         "labels": {"num_images": 100}, **protocol}}


def test_students_of_a_run_come_into_tables_and_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    measured = read_json(labels.FOLDER / "measured.json")
    monkeypatch.setattr(labels, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(labels, "PAGE", tmp_path / "labels.md")
    monkeypatch.setattr(labels, "PICTURE", tmp_path / "labels.png")
    write_json(tmp_path / "results" / "measured.json", measured)
    (tmp_path / "labels.md").write_text(f"before\n{labels.START}\n<!-- end of the tables -->\nafter\n")
    run = tmp_path / "runs" / "labels_digits"
    write_json(run / "students" / "topk:5" / "results.json", student(2_000, 91.0))
    write_json(run / "students" / "keep0.1" / "results.json", student(9_000, 92.5, label_draw="pool"))
    labels.main(labels.get_args(["--run", str(run)]))
    text = (tmp_path / "labels.md").read_text()
    assert "| topk:5 | 2,000 | 91.00 +- 0.50 | 2 |" in text
    assert "| fp16, pool of 0.1 of the epochs | 9,000 | 92.50 +- 0.50 | 2 |" in text
    assert text.startswith("before") and text.endswith("after\n") and "results/labels/cifar10.sh" in text
    assert (tmp_path / "labels.png").stat().st_size > 5_000


@pytest.mark.parametrize("dataset", labels.DATASETS)
def test_the_scripts_start_stages_that_know_their_flags(dataset, tmp_path, monkeypatch):
    """Each form has labels and a student that reads them, and the last command collects these."""
    monkeypatch.setattr("sre2l.run.flags.check_folders", lambda *paths: None)  # of the user's data
    path = with_python(tmp_path / "bin", 'printf "%s\\n" "$@"')
    done = launch(labels.FOLDER / f"{dataset}.sh", cwd=tmp_path, PATH=path)
    assert done.returncode == 0, done.stderr
    calls = []
    for words in re.split(r"^-m\n", done.stdout, flags=re.M)[1:]:
        module, *flags = words.splitlines()
        calls.append((module, importlib.import_module(module).get_args(flags)))
    made = [args.fkd_path for module, args in calls if module == "relabel.relabel"]
    students = [args for module, args in calls if module == "validate.train"]
    assert len(set(made)) == 10 and {args.fkd_path for args in students} == set(made)
    assert len({args.output_dir for args in students}) == len(students)
    assert calls[-1][0] == "report.labels" and calls[-1][1].run.endswith(f"runs/labels_{dataset}")
