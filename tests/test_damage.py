"""A short version of stress/damage.sh: a part of its cases, with the stages started again in some of them. Nothing may be missed."""
import numpy as np
import pytest

from sre2l.data.image_folder import decode
from sre2l.data.label_files import read_fields
from sre2l.nets.models import read_checkpoint
from sre2l.run.settings import read_record
from stress import damage
from stress.damage_tools import Records, Table, quiet
from stress.damage_world import make_released, make_world

STARTED_AGAIN = 8  # cases in which the stages run


@pytest.fixture(scope="module")
def broken_world(tmp_path_factory):
    with quiet():
        return make_world(tmp_path_factory.mktemp("world"))


def test_files_with_records_are_repaired_or_refused_by_name(broken_world, tmp_path):
    records, rng = Records(broken_world, tmp_path, table := Table()), np.random.default_rng(0)
    cases = [*damage.whole_file_cases(records, (7, 15)), *damage.structure_cases()]
    again = set(rng.permutation(len(cases))[:STARTED_AGAIN].tolist())
    for number, case in enumerate(cases):
        records.run(case, number in again)
    damage.record_flips(records, rng, 90)
    assert table.missed == [] and sum(count["tried"] for count in table.counts.values()) == len(cases) + 90
    assert sum(count["stage repairs"] + count["stage refuses"] + count["left to check"] for count in table.counts.values()) == STARTED_AGAIN


def test_what_a_stage_continues_from_is_repaired_or_refused_by_name(broken_world, tmp_path):
    table, rng = Table(), np.random.default_rng(1)
    damage.stage_cases(broken_world, tmp_path, table, (9,))
    for names in damage.STAGE_FILES.values():
        for name in names:
            damage.reader_flips(broken_world / "run" / name, read_checkpoint if name.endswith(".pth") else read_record, table, name, rng, 20)
    assert table.missed == []


def test_folders_without_records_are_refused_where_anything_tells(tmp_path):
    released, table, rng = make_released(tmp_path / "published"), Table(), np.random.default_rng(2)
    for case, can_be_caught in damage.released_cases((7, 15)):
        damage.run_released(released, tmp_path, table, case, can_be_caught)
    damage.reader_flips(released / damage.LABEL, read_fields, table, "label file, released", rng, 200)
    damage.reader_flips(released / damage.IMAGE, lambda path: decode(path).tolist(), table, "image, released", rng, 50, can_be_caught=False)
    assert table.missed == [] and sum(count["cannot be caught"] for key, count in table.counts.items() if key[0] != "a bit flipped") == 2
