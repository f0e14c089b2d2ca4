"""The Beam pipeline writes the same bytes as the local engine."""

import hashlib
import os
import pathlib
import subprocess
import sys

import pytest

from maft_jax.proposals import beam_precompute
from maft_jax.proposals.precompute import precompute
from tests.precompute_jobs import make_job

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
NUM_WORKERS = 3

PROGRAM = """
import sys
from maft_jax.proposals import beam_precompute
from tests.precompute_jobs import BlockProposals, DrawnSource, make_job

folder, pids, bad, *options = sys.argv[1:]
source = DrawnSource(20, bad=eval(bad))
job = make_job(folder, source=source, generator=BlockProposals(0.05, pids=pids))
try:
    print(beam_precompute.run(job, options).describe())
except ValueError as error:
    print(error)
"""


def run_pipeline(folder, pids, bad=()) -> str:
    """Runs it on Beam's own workers, which are processes; returns what it printed."""
    result = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, str(folder), str(pids), repr(bad)),
            *("--runner=DirectRunner", "--direct_running_mode=multi_processing"),
            f"--direct_num_workers={NUM_WORKERS}",
        ],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def contents(folder) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pathlib.Path(folder).iterdir()
    }


@pytest.mark.slow
def test_several_beam_workers_write_the_bytes_of_the_local_engine(tmp_path):
    pids = tmp_path / "pids"
    assert "20 in 10 shards" in run_pipeline(tmp_path / "beam", pids)
    assert len(set(pids.read_text().split())) > 1, "one worker did everything"
    precompute(make_job(tmp_path / "local"), num_workers=1)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")


@pytest.mark.slow
def test_beam_reports_all_bad_examples_keeps_good_shards_and_goes_on(tmp_path):
    pids = tmp_path / "pids"
    printed = run_pipeline(tmp_path / "set", pids, bad=(3, 12))
    assert "2 of 20 examples cannot be used" in printed
    assert "photo_003.png" in printed and "photo_012.png" in printed
    assert len(list((tmp_path / "set").glob("*.done.json"))) == 8
    pids.unlink()
    run_pipeline(tmp_path / "set", pids)
    assert len(pids.read_text().split()) == 4, "computed finished shards again"
    precompute(make_job(tmp_path / "local"), num_workers=1)
    assert contents(tmp_path / "set") == contents(tmp_path / "local")


def test_missing_beam_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"--engine=beam: .*pip install 'maft_jax\[beam\]'"):
        beam_precompute.run(make_job(tmp_path), [])
    assert not list(tmp_path.iterdir())
