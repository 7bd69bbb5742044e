"""Students of several seeds beside each other in one folder, and a run that has come from another place."""
import shutil

from sre2l.run.files import read_json
from tests.helpers import SMALL, noise_folder, refused, run_main
from tests.test_output import hold  # noqa: F401 (a fixture)
from tests.worlds import NAMES, labelled_images
from validate import random_real, train


def test_seeds_may_train_side_by_side_and_the_control_may_have_its_own_in_a_run_that_moved(
        tmp_path, hold):  # noqa: F811
    old = tmp_path / "old"
    flags = (*labelled_images(old, "cutmix", "--device", "cpu"), "--device", "cpu", "--model", SMALL)
    student = old / "run" / f"student_{SMALL}"

    other = hold(student, 1, 2)  # seed 1 is under way in another process
    run_main(train, *flags, "--seeds", "0,2")
    assert f"process {other.pid} on" in refused(train, *flags, "--seeds", "1-2")
    assert f"process {other.pid} on" in refused(train, *flags, "--overwrite")
    other.kill()
    other.wait()
    run_main(train, *flags, "--seeds", 1)
    assert list(read_json(student / "results.json")["seeds"]) == ["0", "1", "2"]

    # Begun here, moved, and gone on with there: paths that the run recorded are followed.
    control = (random_real, "--dataset", "cifar10", "--model", SMALL)
    noise_folder(old / "more" / "train", NAMES, 4)
    run_main(*control, "--name", old / "run", "--real-data", old / "more")
    noise_folder(old / "others" / "train", NAMES, 4)
    assert "source: there" in refused(*control, "--name", old / "run", "--real-data", old / "others")
    new = tmp_path / "new"
    shutil.move(old, new)
    run_main(*control, "--name", new / "run", "--real-data", new / "more", "--seeds", 3)
    root = new / "run" / "random_real"
    assert list(read_json(root / f"student_{SMALL}" / "results.json")["seeds"]) == ["0", "1", "2", "3"]
    assert not old.exists()
    for path in (root / "labels.args.json", root / f"student_{SMALL}" / "args.json"):
        assert read_json(path)["val_dir" if "student" in str(path) else "data"].startswith(str(new))


def test_a_recorded_path_is_followed_only_where_it_is_gone_there_and_is_here(tmp_path):
    here = tmp_path / "b" / "runs" / "x" / "labels"
    for folder in (here, tmp_path / "a" / "data" / "kept", tmp_path / "b" / "data" / "moved"):
        folder.mkdir(parents=True)
    (tmp_path / "b" / "data" / "kept").mkdir()
    a = tmp_path / "a"
    values = {"fkd_path": f"{a}/runs/x/labels", "data": f"{a}/data/kept", "val_dir": f"{a}/data/moved",
              "teacher": f"{a}/data/moved,{a}/data/nowhere", "arch": "resnet18", "epochs": 3}
    assert random_real.follow_move(values, here) == {
        **values, "fkd_path": str(here), "val_dir": f"{tmp_path}/b/data/moved",
        "teacher": f"{tmp_path}/b/data/moved,{a}/data/nowhere"}
    assert random_real.follow_move({"fkd_path": str(here)}, here) == {"fkd_path": str(here)}
