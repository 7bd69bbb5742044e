"""A short version of stress/damage.sh: a part of its cases, in some of which stages start again."""
import numpy as np
import pytest

from stress import damage
from stress import damage_world as worlds
from stress.damage_world import make_released, make_world
from stress.outcomes import Records, Table

STARTED_AGAIN = 5  # cases in which the stages run


@pytest.fixture(scope="module")
def broken_world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_files_with_records_are_repaired_or_refused_by_name(broken_world, tmp_path):
    table = Table()
    records = Records(broken_world, tmp_path, table)
    rng = np.random.default_rng(0)
    cases = [*damage.whole_file_cases(records, (7,)), *damage.structure_cases()]
    again = set(rng.permutation(len(cases))[:STARTED_AGAIN].tolist())
    for number, case in enumerate(cases):
        records.run(case, number in again)
    damage.record_flips(records, rng, 90)
    assert table.missed == []
    assert sum(count["tried"] for count in table.counts.values()) == len(cases) + 90
    outcomes = ("stage repairs", "stage refuses", "left to check")
    assert sum(count[outcome] for count in table.counts.values() for outcome in outcomes) == STARTED_AGAIN


@pytest.mark.parametrize("codec", ("uint8", "none"))  # damage.sh: all
def test_labels_of_each_codec_are_repaired_or_refused_by_name(broken_world, tmp_path, codec):
    table = Table()
    coded = worlds.make_coded(broken_world, tmp_path / "coded", codec)
    records = Records(coded, tmp_path, table, codec)
    cases = [*damage.coded_cases(records, (7,))]
    again = set(np.random.default_rng(3).permutation(len(cases))[:2].tolist())
    for number, case in enumerate(cases):
        records.run(case, number in again)
    damage.record_flips(records, np.random.default_rng(0), 30, damage.kinds_of(codec))
    if codec != "none":
        damage.reader_flips(coded / "run" / damage.PACKED, damage.read_packed, table, "packed, released",
                            np.random.default_rng(0), 100)
    assert table.missed == []


def test_what_a_stage_continues_from_is_repaired_or_refused_by_name(broken_world, tmp_path):
    table = Table()
    damage.stage_cases(broken_world, tmp_path, table, (9,))
    damage.stage_file_flips(broken_world, table, np.random.default_rng(1), 20)
    assert table.missed == []


def test_folders_without_records_are_refused_where_anything_tells(tmp_path):
    released = make_released(tmp_path / "published")
    table = Table()
    for case, can_be_caught in damage.released_cases((7, 15)):
        damage.run_released(released, tmp_path, table, case, can_be_caught)
    damage.released_flips(released, table, np.random.default_rng(2), label_bits=200, image_bits=50)
    assert table.missed == []
    uncaught = [count["cannot be caught"] for key, count in table.counts.items() if key[0] != "a bit flipped"]
    assert sum(uncaught) == 2
