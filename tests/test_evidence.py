"""docs/evidence.md quotes what benchmarks/evidence.py measured, and that script asks its questions of real runs."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

SETTINGS = [ROOT / "benchmarks" / "evidence" / f"{name}.yaml" for name in ("cpu", "gpu", "toy")]
PAGE, TABLES = ((ROOT / "docs" / name).read_text() for name in ("evidence.md", "evidence_tables.md"))
RESULT = json.loads((ROOT / "benchmarks" / "results" / "evidence_cpu.json").read_text())
README = (ROOT / "README.md").read_text()


def test_the_pages_quote_the_result_file() -> None:
    for name, content in RESULT["tables"].items():
        assert f"<!-- {name} -->\n{content}\n<!-- end -->" in PAGE + TABLES
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", PAGE):
        assert (ROOT / "docs" / picture).exists()


def test_the_headline_is_the_result_s() -> None:
    asked = RESULT["answers"]["equal_flops"]["1"]
    assert asked["steps"] == RESULT["setting"]["steps"] and asked["baseline"]["n"] == len(RESULT["setting"]["seeds"])
    assert f"{asked['baseline']['mean']:.3f}" in README and f"{asked['tst']['mean']:.3f}" in README
    assert f"{asked['difference']['mean']:+.3f}" in README
    (speed,) = (each for each in RESULT["answers"]["equal_loss"] if each["steps"] == asked["steps"])
    assert f"{speed['speedup']['mean']:.2f} times the compute" in README and speed["speedup"]["pairs"] == speed["seeds"]


def test_each_arm_was_tuned_over_the_same_grid_with_a_seed_of_its_own() -> None:
    assert RESULT["setting"]["tune"]["seed"] not in RESULT["setting"]["seeds"]
    for arms in RESULT["tuned"].values():
        baseline, tst = (
            {tuple(run["settings"][key] for key in RESULT["best"]["keys"]) for run in arms[arm]}
            for arm in ("baseline", "tst")
        )
        assert baseline == tst and len(baseline) > 1


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_settings_name_files_that_are_there(path: Path) -> None:
    setting = yaml.safe_load(path.read_text())
    others = (setting.get("unique") or {}).get("others", {})
    files = [setting["fit"], setting["baseline"], *setting.get("origin", {}).values(), *others.values()]
    assert [name for group in files for name in group if not (ROOT / name).exists()] == []
    assert setting["main"] in setting["sizes"] and setting["tune"]["seed"] not in setting["seeds"]


def test_each_arm_takes_the_best_of_its_own_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    evidence = importlib.import_module("evidence")
    setting = yaml.safe_load((ROOT / "benchmarks" / "evidence" / "cpu.yaml").read_text())
    size = setting["main"]
    setting["sizes"] = {size: setting["sizes"][size]}
    wanted = {"baseline": (4e-3, 300), "tst": (8e-3, 50)}
    ends = {}
    for arm, best in wanted.items():
        for one in evidence.tuning(setting, size, arm):
            tried = (one[evidence.RATE], one[evidence.WARMUP])
            if tried[0] != 2e-3:  # those failed
                ends[evidence.key(one)] = {"final_val_loss": 2.0 if tried == best else 2.1}
    found = evidence.chosen(setting, ends)[size]
    assert {arm: tuple(values.values()) for arm, values in found.items()} == wanted

    del setting["baseline_also"]
    for part, arms in evidence.parts(setting, {size: found}).items():
        for arm, cases in arms.items():
            kind = "baseline" if arm.startswith("baseline") else "tst"
            assert {(one[evidence.RATE], one[evidence.WARMUP]) for one in cases} == {wanted[kind]}, part
            assert setting["tune"]["seed"] not in {one[evidence.SEED] for one in cases}
            assert (evidence.BAG_SIZE in cases[0]) == (kind == "tst")


def test_what_had_finished_when_it_was_stopped_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each question, in the order in which they are run, those before it are answered as they are in the end."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    questions, setting = importlib.import_module("evidence_questions"), RESULT["setting"]
    found: dict[str, Any] = {}
    for part, arms in RESULT["parts"].items():
        found[part] = arms
        asked = questions.answers(setting, found)
        told = (
            "positions"
            if part == "equal_flops"
            else {"lengths": "equal_flops", "longer": "equal_loss", "longest": "equal_loss"}.get(part, part)
        )
        assert told in asked
    assert json.loads(json.dumps(asked)) == RESULT["answers"]


def test_the_gpu_s_setting_at_a_toy_size(tmp_path: Path, shards: Path) -> None:
    """Tuned, trained over seeds, continued until the data is equal, compared; and nothing is trained twice."""
    setting = yaml.safe_load((ROOT / "benchmarks" / "evidence" / "gpu.yaml").read_text())
    for question in ("lengths", "origin", "surface", "unique"):
        del setting[question]
    setting |= {"prepare": {}, "steps": 10, "tune": {"seed": 11, "steps": 8, "warmups": [2]}, "longer": [2.5]}
    setting |= {"seeds": [1], "few_seeds": [1]}
    setting["sizes"] = {setting["main"]: {"set": {}, "learning_rates": [4e-3]}}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    shape |= {"num_hidden_layers": 1, "vocab_size": json.loads((shards / "manifest.json").read_text())["vocab_size"]}
    setting["set"] = {f"model.config.init_args.{key}": value for key, value in shape.items()}
    setting["set"] |= {"data.shards": str(shards), "data.seq_len": 16, "data.batch_size": 4, "data.block_rows": 12}
    setting["set"] |= {"model.compile": False, "trainer.precision": "32-true", "trainer.val_check_interval": 5}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(setting))
    names = ("tuned", "equal_flops", "positions", "equal_loss", "equal_data")
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name} -->\n<!-- end -->\n" for name in names))
    words = [tmp_path / "small.yaml", "--pages", page, "--out", tmp_path / "small.json", "--runs", tmp_path / "runs"]
    command = [sys.executable, "benchmarks/evidence.py", *words, "--devices", "cpu:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "small.json").read_text())
    best = min(found["tuned"][setting["main"]]["baseline"], key=lambda run: run["final_val_loss"])["settings"]
    ends = found["parts"]["equal_flops"]
    for run in ends["baseline"]:
        assert all(run["settings"][key] == best[key] for key in found["best"]["keys"])
    assert [run["flops"] for run in ends["baseline"]] == [run["flops"] for run in ends["tst"]]
    (pair,) = found["answers"]["equal_data"]
    assert pair["tokens"] == ends["tst"][0]["tokens"] and pair["flops_ratio"] == pytest.approx(2.5)
    (asked,) = found["answers"]["equal_flops"].values()
    (speed,) = found["answers"]["equal_loss"]
    between = [runs[0]["flops"] for name, runs in {**ends, **found["parts"]["longer"]}.items() if name != "tst"]
    assert all(between[0] <= flops <= between[1] for flops in speed["baseline_flops"].values())
    by_hand = sum(t["final_val_loss"] - b["final_val_loss"] for b, t in zip(*ends.values(), strict=True)) / len(
        ends["tst"]
    )
    assert asked["difference"]["mean"] == pytest.approx(by_hand)

    assert set(found["tables"]) == set(names)
    assert all(content in page.read_text() for content in found["tables"].values()) and (tmp_path / "page.png").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "started" not in again.stdout, again.stdout
