"""`tst evaluate`: scores are those of the model's own likelihoods, and reach JSON, TensorBoard and compare."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from huggingface_hub import constants
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from tst_lightning.__main__ import main

# Continuations of Python, which the model was trained on; the model reads at most 16 tokens, of hardly more than a byte.
QUESTIONS = [
    ("return", ["None", "xq", "(((("], 0),
    ("import", ["zz", "os", "::"], 1),
    ("def f(self):", ["%", "#", "pass"], 2),
    ("if x is", ["not None", "a"], 0),
    ("for i", ["in", "of", "zzzzz"], 0),
    ("    self", [".x", "q"], 1),
    ("else", ["x", ":", "self.a"], 1),
    ("class A", ["(B):", "Q"], 0),
]
LONG = [("x = 1; " * 10, ["y", "z"], 0)]


def write_task(folder: Path, name: str, questions: list[tuple[str, list[str], int]]) -> None:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"q": q, "choices": choices, "gold": gold}) for q, choices, gold in questions]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / f"{name}.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 3.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness asks pip and drivers what is installed, at each call, for over a second; nothing reads the answer."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks ``python``, ``first`` (its first three questions) and ``long``, and the group ``both`` of the first two."""
    folder = tmp_path_factory.mktemp("tasks") / "mine"
    for name, questions in {"python": QUESTIONS, "first": QUESTIONS[:3], "long": LONG}.items():
        write_task(folder, name, questions)
    aggregated = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (folder / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["python", "first"]} | aggregated))
    return folder


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, to be written to."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def evaluate(model: Path, tasks: Path, out: Path, *options: str, names: tuple[str, ...] = ("python",)) -> int:
    command = ["evaluate", str(model), "--include_path", str(tasks), "--out", str(out), "--device", "cpu"]
    return main([*command, *options, "--tasks", *names])


def by_hand(folder: Path, questions: list[tuple[str, list[str], int]], per_character: bool) -> float:
    """The share of questions whose right answer is the likeliest, from logits in float64."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    right = 0
    for question, choices, gold in questions:
        scores = []
        for choice in choices:
            before = tokenizer(question).input_ids
            ids = tokenizer(f"{question} {choice}").input_ids
            assert ids[: len(before)] == before and len(ids) <= 17
            with torch.no_grad():
                logits = lm(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
            score = sum(logits[i - 1, ids[i]].item() for i in range(len(before), len(ids)))
            scores.append(score / (len(choice) if per_character else 1))
        right += scores.index(max(scores)) == gold
    return right / len(questions)


def test_scores_of_a_checkpoint_and_of_its_export(
    run: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert evaluate(checkpoint, tasks, tmp_path / "a.json", names=("python", "both")) == 0
    said = capfd.readouterr().out
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "export")]) == 0
    assert evaluate(tmp_path / "export", tasks, tmp_path / "b.json", "--batch_size", "8") == 0

    mine, exported = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert exported["tasks"]["python"] == mine["tasks"]["python"]
    assert exported["checkpoint"] is None
    found = mine["tasks"]["python"]
    acc, acc_norm = (by_hand(tmp_path / "export", QUESTIONS, norm) for norm in (False, True))
    assert 0 < acc < 1
    assert found["metrics"] == {
        **{"acc": acc, "acc_norm": acc_norm},
        **{key: pytest.approx(found["metrics"][key]) for key in ("acc_stderr", "acc_norm_stderr")},
    }
    variance = acc_norm * (1 - acc_norm) / (len(QUESTIONS) - 1)
    assert found["stderr"] == pytest.approx(variance**0.5)
    assert (found["accuracy"], found["metric"], found["n"], found["version"]) == (acc_norm, "acc_norm", 8, 3.0)
    both, first = mine["tasks"]["both"], by_hand(tmp_path / "export", QUESTIONS[:3], False)
    assert both["n"] == 11 and both["metric"] == "acc" and both["accuracy"] == pytest.approx((acc * 8 + first * 3) / 11)
    assert mine["average_accuracy"] == (acc_norm + both["accuracy"]) / 2 and mine["averaged"] == ["python", "both"]
    assert f"python   acc_norm  {acc_norm:.4f} ± {found['stderr']:.4f}  of 8 questions" in said
    assert mine["failed"] == {} and (mine["num_fewshot"], mine["limit"], mine["dtype"]) == (0, None, "float32")
    assert mine["versions"].keys() == {"tst-lightning", "lm_eval", "datasets", "transformers", "torch"}

    record = json.loads((run / "run.json").read_text())
    flops = sum(phase["steps"] * phase["flops_per_step"] for phase in record["phases"])
    of_checkpoint = mine["checkpoint"]
    assert (of_checkpoint["step"], of_checkpoint["flops"], of_checkpoint["tokens"]) == (20, flops, 3200)
    assert [phase["name"] for phase in of_checkpoint["phases"]] == ["superposition", "recovery"]
    kept = {path.name: json.loads(path.read_text()) for path in (run / "evaluations").iterdir()}
    assert kept.keys() == {"step=20-python.json", "step=20-both.json"}
    assert kept["step=20-python.json"]["tasks"] == {"python": found}

    events = EventAccumulator(str(run / "tensorboard" / "evaluations")).Reload()
    points = {"python/acc": acc, "python/acc_norm": acc_norm, "both/acc": both["accuracy"]}
    points["average/both+python"] = mine["average_accuracy"]
    axes = {"eval": 20, "eval_by_gflop": flops // 10**9, "eval_by_token": 3200}
    assert {tag: (event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)} == {
        f"{axis}/{tag}": (step, pytest.approx(value)) for axis, step in axes.items() for tag, value in points.items()
    }


def test_compare_reads_them(run: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    record = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(record | {"name": "other", "optimizer": "Another"}))
    for folder, names in ((run, ("python", "first")), (other, ("python",))):
        assert evaluate(folder / "checkpoints" / "last.ckpt", tasks, tmp_path / f"{folder.name}.json", names=names) == 0
    capfd.readouterr()
    assert main(["compare", str(run), str(other), "--out", str(tmp_path / "report")]) == 0
    score = json.loads((tmp_path / "run.json").read_text())["tasks"]["python"]["accuracy"]
    said = capfd.readouterr().out
    assert f"accuracy at equal FLOPs (252 MFLOP, mean of 1 task): run {score:.4f}, other {score:.4f} (+0.0000)" in said
    assert "not in the average accuracy: first." in said
    assert "<h2>Equal FLOPs: accuracy at 252 MFLOP</h2>" in (tmp_path / "report" / "report.html").read_text()


def test_bags_are_warned_of_and_a_trial_leaves_nothing_in_the_run(
    run: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints" / "switch-recovery-step=10.ckpt"
    options = ("--limit", "1", "--dtype", "bfloat16")
    before = sorted(run.rglob("*"))
    assert evaluate(checkpoint, tasks, tmp_path / "out.json", *options, names=("long", "python")) == 0
    said = capfd.readouterr().out
    assert (
        "note     the checkpoint is from phase 'superposition', in which positions read and predict bags of 4" in said
    )
    assert "questions longer than the model's context lost their beginning: long (1 times)" in said
    content = json.loads((tmp_path / "out.json").read_text())
    assert (content["limit"], content["tasks"]["python"]["n"], content["dtype"]) == (1, 1, "bfloat16")
    assert content["tasks"]["python"]["stderr"] is None, "of one question there is none"
    assert sorted(run.rglob("*")) == before


def test_data_that_can_not_be_fetched_is_named_and_the_rest_is_scored(
    run: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        constants, "ENDPOINT", "http://127.0.0.1:9"
    )  # where nobody listens, on a machine with a network
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert evaluate(checkpoint, tasks, tmp_path / "out.json", names=("piqa", "python", "arc_easy")) == 1
    captured = capfd.readouterr()
    said = captured.err.splitlines()[-1]
    assert said.startswith(
        "error: 2 of 3 tasks could not be scored: piqa (ConnectionError: Couldn't reach 'baber/piqa'"
    )
    assert "arc_easy (ConnectionError: Couldn't reach 'allenai/ai2_arc' on the Hub" in said
    assert said.endswith("; the Hugging Face hub can't be reached, and data not in its cache can't be fetched")
    assert "not loaded  piqa: ConnectionError" in captured.err
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["failed"].keys() == {"piqa", "arc_easy"} and content["tasks"].keys() == {"python"}
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


@pytest.fixture
def refused(tiny_run: Path, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Evaluates, expects a refusal, and gives its one line; nothing may be written."""

    def evaluate_(*options: str, code: int = 2, model: Path | None = None, names: str = "python") -> str:
        checkpoint = model or tiny_run / "checkpoints" / "last.ckpt"
        capfd.readouterr()
        assert evaluate(checkpoint, tasks, tmp_path / "out.json", *options, names=(names,)) == code
        captured = capfd.readouterr()
        assert captured.out == "" and captured.err.splitlines()[-1].startswith("error: ")
        assert not (tmp_path / "out.json").exists()
        return captured.err.splitlines()[-1]

    return evaluate_


def test_what_can_not_be_evaluated(
    refused: Any, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In place of all of the harness's thousands of files, which it takes ten seconds to look through.
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(tmp_path / "manager.py"))
    assert "there is no model at 'nowhere'; name a checkpoint" in refused(model=Path("nowhere"))
    assert "is a run's folder; name one of its checkpoints" in refused(model=tiny_run)
    assert "the harness knows no task 'nothing_of_the_kind'; name 'paper', tasks" in refused(
        names="nothing_of_the_kind"
    )
    assert "--include_path 'nowhere' is no folder" in refused("--include_path", "nowhere")
    assert "--limit is 0; it must be at least 1" in refused("--limit", "0")
    assert "--batch_size is -1; it must be at least 1" in refused("--batch_size", "-1")
    assert "--device 'nothing' can't be used here (" in refused("--device", "nothing")
    assert "text needs a tokenizer; --tokenizer is 'none'" in refused("--tokenizer", "none")
    (tmp_path / "config.json").write_text("{}")
    assert "is no configuration that this version of transformers knows (" in refused(model=tmp_path)
    assert main(["evaluate", str(tiny_run), "--out", str(tmp_path)]) == 2


def test_the_extra_that_is_not_installed_is_named(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    assert refused().endswith("is not installed; install the extra: pip install 'tst-lightning[eval]'")


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from tst_lightning.__main__ import main\n"
        "try: main(['evaluate', '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert not {'lightning', 'torch', 'transformers', 'numpy', 'lm_eval'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "MODEL" in done.stdout and "--include_path" in done.stdout
