"""Reading run folders: merged csv versions, switches, names."""

import json

import pytest

from tests.compare.run_folders import TST_PHASES, write_run, write_version
from tst_lightning.compare.runs import Point, read_run, read_runs
from tst_lightning.errors import ConfigError, RunError


def test_partial_rows_of_one_step_become_one_point(tmp_path):
    run = read_run(write_run(tmp_path / "a", [(50, 4.0), (100, 3.0)]))
    assert run.curve[0] == Point(50, 4.0, 500, 5000, 5000, 25.0, perplexity=2.7**4, bits_per_byte=2.0)
    assert [point.step for point in run.curve] == [50, 100]
    assert run.final.loss == 3.0


def test_a_later_version_wins_from_its_first_step_on(tmp_path):
    folder = write_run(tmp_path / "a", [(10, 6.0), (20, 5.5), (30, 5.0), (40, 4.9)])
    write_version(tmp_path / "a", [(30, 4.5), (50, 4.0)])
    run = read_run(folder)
    assert [(point.step, point.loss) for point in run.curve] == [(10, 6.0), (20, 5.5), (30, 4.5), (50, 4.0)]


def test_a_third_version_from_an_older_checkpoint_drops_rows_of_both(tmp_path):
    folder = write_run(tmp_path / "a", [(10, 6.0), (20, 5.5), (30, 5.0)])
    write_version(tmp_path / "a", [(30, 4.5), (40, 4.2)])
    write_version(tmp_path / "a", [(20, 5.4), (100, 3.0)])
    assert [(p.step, p.loss) for p in read_run(folder).curve] == [(10, 6.0), (20, 5.4), (100, 3.0)]


def test_versions_are_ordered_as_numbers(tmp_path):
    folder = write_run(tmp_path / "a", [])
    for version in range(11):
        write_version(tmp_path / "a", [(10, 7.0), (100, 4.0 - version / 10)])
    assert (tmp_path / "a/csv/version_10").is_dir()
    assert read_run(folder).final.loss == 3.0


def test_a_version_that_logged_nothing_changes_nothing(tmp_path):
    folder = write_run(tmp_path / "a")
    (tmp_path / "a/csv/version_1").mkdir()
    (tmp_path / "a/csv/version_2").mkdir()
    (tmp_path / "a/csv/version_2/metrics.csv").write_text("")
    (tmp_path / "a/csv/version_3").mkdir()
    (tmp_path / "a/csv/version_3/metrics.csv").write_text("step,val/loss\r\n")
    assert read_run(folder).final.loss == 3.0


def test_a_torn_last_row_is_dropped_in_a_killed_start_and_damage_in_a_finished_run(tmp_path):
    folder = write_run(tmp_path / "a", [(50, 4.0), (80, 3.5)], status="running", step=85)
    first = tmp_path / "a/csv/version_0/metrics.csv"
    first.write_bytes(first.read_bytes() + b"90,3.")
    assert read_run(folder).final.step == 80
    finished = write_run(tmp_path / "b", [(50, 4.0)])
    file = tmp_path / "b/csv/version_0/metrics.csv"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(RunError, match="b/csv/version_0/metrics.csv is damaged: it ends in the middle of a row"):
        read_run(finished)


def test_falling_totals_are_damage(tmp_path):
    folder = write_run(tmp_path / "a", [(50, 4.0)])
    write_version(tmp_path / "a", [(60, 3.0)], flops_per_step=1)
    with pytest.raises(RunError, match="FLOPs or tokens decrease at step 60"):
        read_run(folder)


def test_switch_is_exact_though_no_validation_stands_on_it(tmp_path):
    folder = write_run(tmp_path / "a", [(15, 5.0), (40, 4.0), (100, 3.0)], bag_steps=20, phases=TST_PHASES)
    assert read_run(folder).switches() == [
        {"phase": "recovery", "step": 20, "flops": 200.0, "tokens": 8000, "seconds": 10.0}
    ]


def test_switch_before_the_first_validation_is_interpolated(tmp_path):
    folder = write_run(tmp_path / "a", [(40, 4.0), (100, 3.0)], bag_steps=20, phases=TST_PHASES)
    # 10,000 tokens at step 40, halved.
    assert read_run(folder).switches() == [
        {"phase": "recovery", "step": 20, "flops": 200.0, "tokens": 5000, "seconds": 10.0}
    ]


def test_a_switch_to_come_and_a_phase_of_no_steps_are_no_switches(tmp_path):
    early = write_run(tmp_path / "a", [(10, 4.0)], bag_steps=20, phases=TST_PHASES, status="running", step=10)
    assert read_run(early).switches() == []
    phases = [dict(TST_PHASES[0], steps=0), dict(TST_PHASES[1], first_step=0, steps=100)]
    assert read_run(write_run(tmp_path / "b", phases=phases)).switches() == []


def test_runs_of_one_name_are_told_apart_by_path(tmp_path):
    one, two = write_run(tmp_path / "1", name="tst"), write_run(tmp_path / "2", name="tst")
    three = write_run(tmp_path / "3", name="other")
    assert [run.name for run in read_runs([one, two, three])] == [one, two, "other"]
    four = write_run(tmp_path / "4", name=one)
    assert [run.name for run in read_runs([one, two, four])] == [one, two, four]


def test_a_run_is_no_seed_of_itself(tmp_path):
    one = write_run(tmp_path / "1")
    with pytest.raises(ConfigError, match=r"run folder '.*/1' is named 2 times; name each run once"):
        read_runs([one, f"{tmp_path}/./1", write_run(tmp_path / "2")])


def test_infinite_perplexity_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a")
    file = tmp_path / "a/csv/version_0/metrics.csv"
    file.write_text(file.read_text().replace(str(2.7**3.0), "inf"))
    assert read_run(folder).final.perplexity is None


@pytest.mark.parametrize(
    ("key", "value"), [("seq_len", None), ("seq_len", "128"), ("phases", [{"name": "x"}]), ("phases", [3])]
)
def test_record_of_the_wrong_shape_is_damage(tmp_path, key, value):
    folder = write_run(tmp_path / "a", **{key: value})
    with pytest.raises(RunError, match="a/run.json is damaged"):
        read_run(folder)
    assert json.loads((tmp_path / "a/run.json").read_text())[key] == value
