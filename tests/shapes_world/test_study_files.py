"""Files of the study's records: each is written whole, and both are read together."""

import json

import pytest

from maft_jax.shapes_world.experiments import (
    EXPERIMENTS,
    LEARNED_MASKS,
    METHOD_TABLES,
    RECALL_TABLE,
)
from maft_jax.shapes_world.study_files import (
    CONVNEXT_FILE,
    LEARNED,
    METHODS_FILE,
    RECALL,
    RUNS,
    SECOND_CLIP_FILE,
    read_methods,
    read_study,
    write_records,
)

RECORDS = json.loads(
    json.dumps([{"table": one.table, "settings": dict(one.changes)} for one in EXPERIMENTS])
)
LEARNED_RECORDS = [record for record in RECORDS if record["table"] == "learned_masks"]


def test_all_tables_make_both_files(tmp_path):
    assert write_records(RECORDS, {"machine": "an abacus"}, tmp_path) == {RUNS, LEARNED}
    study = read_study(tmp_path)
    assert study["learned_masks"] == {"runs": LEARNED_RECORDS, "machine": "an abacus"}
    assert study["runs"] == [one for one in RECORDS if one["settings"] != LEARNED_MASKS]


def test_learned_masks_alone_leave_the_other_runs_as_they_are(tmp_path):
    others = json.dumps({"runs": [{"table": "main"}], "machine": "an abacus"})
    (tmp_path / RUNS).write_text(others)
    assert "learned_masks" not in read_study(tmp_path)
    assert write_records(LEARNED_RECORDS, {"machine": "a slide rule"}, tmp_path)
    assert (tmp_path / RUNS).read_text() == others
    study = read_study(tmp_path)
    assert (study["machine"], study["learned_masks"]["machine"]) == ("an abacus", "a slide rule")


def test_methods_have_a_file_of_their_own(tmp_path):
    record, second, third = ({"table": table, "settings": {}} for table in METHOD_TABLES)
    assert write_records([record], {"machine": "an abacus"}, tmp_path) == {METHODS_FILE}
    found = json.loads((tmp_path / METHODS_FILE).read_text())
    assert found == {"runs": [record], "machine": "an abacus"} == read_methods(tmp_path)
    assert write_records([second], {"machine": "a slide rule"}, tmp_path) == {SECOND_CLIP_FILE}
    assert write_records([third], {"machine": "a table"}, tmp_path) == {CONVNEXT_FILE}
    study = read_methods(tmp_path)
    assert (study["second_clip"]["runs"], study["convnext"]["runs"]) == ([second], [third])


def test_recall_of_proposals_has_a_file_of_its_own(tmp_path):
    record = {"table": RECALL_TABLE, "row": "trained", "seed": 0}
    assert write_records([record], {"machine": "an abacus"}, tmp_path) == {RECALL}
    (tmp_path / RUNS).write_text('{"runs": []}')
    found = {"runs": [record], "machine": "an abacus"}
    assert read_study(tmp_path) == {"runs": [], "proposal_recall": found}


def test_some_tables_of_a_file_write_nothing(tmp_path):
    assert not write_records([{"table": "main"}], {}, tmp_path)
    assert not any(tmp_path.iterdir())


def test_learned_masks_without_the_other_runs_make_no_page(tmp_path):
    write_records(LEARNED_RECORDS, {}, tmp_path)
    assert (tmp_path / LEARNED).exists()
    with pytest.raises(ValueError, match=r"runs\.json: there is none.*--page=docs"):
        read_study(tmp_path)
