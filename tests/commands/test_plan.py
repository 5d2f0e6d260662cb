"""``tst plan``: what it says before a run is what the meter says after it; and each refusal."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig

from tests.callbacks.test_flops_meter import logged
from tests.conftest import ROOT, tiny_config
from tst_lightning.__main__ import main
from tst_lightning.plan.shape import Shape, config_of_shape

SHAPE = "--shape.hidden_size 64 --shape.layers 3 --shape.heads 4 --shape.ffn 160 --shape.vocab_size 512".split()
SMALL = [*SHAPE, "--seq_len", "32", "--batch_size", "2"]


@pytest.fixture
def plan(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; gives exit code, what it printed, and what it said on the error channel."""

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["plan", *words])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def test_plan_and_meter_agree_to_the_flop_and_the_token(plan: Any, fit: Any, tmp_path: Path) -> None:
    changes = {"trainer__accumulate_grad_batches": 2, "trainer__val_check_interval": 10}
    assert fit("run", **changes)[0] == 0
    code, out, said = plan("--config", str(tmp_path / "run.yaml"), "--json")
    assert code == 0, said
    of_plan = json.loads(out)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    arm, end = of_plan["arms"]["tst"], logged(tmp_path / "run")[-1]
    for quantity in ("flops", "tokens", "positions"):
        assert arm[quantity] == end[f"compute/{quantity}"], quantity
        assert arm[quantity] == sum(phase[quantity] for phase in arm["phases"].values())
    assert arm["steps"] == end["compute/step"] == of_plan["arms"]["baseline"]["steps"]
    assert arm["flops"] == record["flops"] == of_plan["arms"]["baseline"]["flops"]
    for phase in record["phases"]:
        mine = arm["phases"][phase["name"]]
        assert (mine["steps"], mine["tokens"], mine["bag_size"]) == (phase["steps"], phase["tokens"], phase["bag_size"])
        assert mine["flops"] == phase["steps"] * phase["flops_per_step"]
    assert of_plan["flops_convention"] == record["flops_convention"]
    assert of_plan["parameters"]["total"] == record["model"]["parameters"]
    assert arm["unique_tokens_needed"] == record["tokens_needed"]
    assert arm["passes"] == pytest.approx(record["passes"])
    checkpoint = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_size
    # A checkpoint of so small a model is a fifth bookkeeping.
    assert of_plan["memory"]["bytes"]["checkpoint"] == pytest.approx(checkpoint, rel=0.25)


def test_the_quickstarts_plan_is_its_runs_budget(plan: Any) -> None:
    code, out, said = plan("--config", str(ROOT / "configs" / "quickstart" / "tst.yaml"), "--json")
    assert code == 0, said
    # What both runs of `make quickstart` log as compute/flops at their end.
    assert {json.loads(out)["arms"][arm]["flops"] for arm in ("baseline", "tst")} == {7_851_737_088_000}


def test_a_configuration_can_be_changed_and_composed(plan: Any, shards: Path, tmp_path: Path) -> None:
    path, more = tmp_path / "run.yaml", tmp_path / "more.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "run", shards)))
    more.write_text("trainer: {max_steps: 40}\n")
    words = ["--config", str(path), "--config", str(more), "--data.batch_size", "2", "--json"]
    shorter = json.loads(plan(*words, "--model.phases.superposition.init_args.share", "0.25")[1])
    assert shorter["budget"]["steps"] == 40 and shorter["batch"]["micro_batch_rows"] == 2
    assert shorter["arms"]["tst"]["phases"]["superposition"]["steps"] == 10
    assert not (tmp_path / "run").exists(), "a plan writes nothing"


def test_a_shape_a_folder_and_a_configuration_are_one_model(plan: Any, tmp_path: Path) -> None:
    config = config_of_shape(Shape(64, 3, 4, 160, vocab_size=512), 32)
    config.save_pretrained(tmp_path)
    sizes = ["--seq_len", "32", "--batch_size", "2", "--steps", "10", "--json"]
    by_shape, by_folder = (json.loads(plan(*words, *sizes)[1]) for words in (SHAPE, ["--hf", str(tmp_path)]))
    assert by_shape["arms"] == by_folder["arms"] and by_shape["parameters"] == by_folder["parameters"]
    assert isinstance(config, LlamaConfig)


def test_one_page_says_it_all(plan: Any, tmp_path: Path) -> None:
    figure = tmp_path / "grid.png"
    words = [
        "--steps",
        "1000",
        "--bag_size",
        "4",
        "--ratio",
        "0.25",
        "--device",
        "H100",
        "--mfu",
        "0.4",
        "--price",
        "2",
    ]
    words += ["--checkpointing", "selective"]
    code, out, said = plan(*SMALL, *words, "--unique_tokens", "100000", "--figure", str(figure))
    assert code == 0, said
    assert max(map(len, out.splitlines())) <= 100
    for part in (
        "superposition",
        "recovery",
        "passes",
        "device hours",
        "cost",
        "optimizer state",
        "selective activation checkpointing",
        "computed again",
        "checkpoint on disk",
        "s = ",
    ):
        assert part in out, part
    assert re.search(r"tst +in all +1,000 +112k", out)  # 64 positions a step, 1.75 tokens each
    assert "'tst' reads the data 1.1" in out
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_mixture_of_experts_counts_its_active_parameters(plan: Any) -> None:
    code, out, said = plan(
        *SMALL, "--shape.experts", "8", "--shape.experts_per_token", "2", "--flops", "1e12", "--json"
    )
    assert code == 0, said
    of_plan = json.loads(out)
    inactive = 3 * 6 * 3 * 64 * 160  # layers, experts not chosen, matrices of each
    assert of_plan["parameters"]["total"] - of_plan["parameters"]["active"] == inactive
    assert (
        of_plan["arms"]["baseline"]["flops"] <= 1e12 < of_plan["arms"]["baseline"]["flops"] + of_plan["flops_per_step"]
    )
    assert (of_plan["recommendation"]["bag_size"], of_plan["recommendation"]["weighting"]) == (16, "power_law")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one of --config, --shape.* and --hf; given: none of them"),
        ([*SHAPE, "--config", "a.yaml"], "given: --config and --shape"),
        (SHAPE, "no budget; give --steps, --flops, --device_hours or --tokens"),
        ([*SHAPE, "--steps", "5", "--tokens", "1e9"], "--steps and --tokens are given"),
        ([*SHAPE, "--steps", "5", "--bag_size", "4"], "--bag_size and --ratio are given together"),
        ([*SHAPE, "--steps", "5", "--bag_size", "4", "--ratio", "1.5"], "--ratio is 1.5; it must lie between 0 and 1"),
        ([*SHAPE, "--steps", "5", "--bag_size", "0", "--ratio", ".5"], "bag_size is 0; it must be at least 1"),
        ([*SHAPE, "--steps", "5", "--devices", "0"], "--devices is 0; it must be at least 1"),
        ([*SHAPE, "--steps", "5", "--weighting", "power_law"], "--weighting goes with --bag_size"),
        ([*SHAPE, "--steps", "5", "--precision", "int4"], "precision is 'int4'"),
        ([*SHAPE, "--steps", "5", "--mfu", "0.4"], "--mfu is a share of a device's peak"),
        ([*SHAPE, "--steps", "5", "--like", "runs/none"], "no such run folder: runs/none"),
        ([*SHAPE, "--steps", "5", "--like", "a", "--mfu", "0.4"], "--like takes the place of"),
        ([*SHAPE, "--data.batch_size", "5"], "--data.batch_size changes a configuration, but none is given"),
        (["--config", "a.yaml", "--seq_len", "5"], "--seq_len is for --shape and --hf"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--hf", "./nowhere", "--steps", "5"], "--hf ./nowhere is no configuration of a model"),
        (["--shape.hidden_size", "64", "--steps", "1"], "the following arguments are required: layers, heads, ffn"),
        (
            [*SHAPE[:4], "--shape.heads", "7", "--shape.ffn", "8", "--steps", "1"],
            "does not divide shape.hidden_size 64",
        ),
        ([*SHAPE, "--shape.experts", "4", "--steps", "1"], "shape.experts_per_token is 0 of 4 experts"),
        (
            [
                "--shape.hidden_size",
                "64",
                "--shape.layers",
                "1",
                "--shape.heads",
                "0",
                "--shape.ffn",
                "8",
                "--steps",
                "1",
            ],
            "shape.heads is 0; it must be at least 1",
        ),
        ([*SHAPE, "--steps", "5", "--unique_tokens", "0.5"], "--unique_tokens is 0.5; it must be at least 1"),
        ([*SHAPE, "--steps", "5", "--bag_size", "4", "--ratio", ".1"], "--ratio 0.1 of 5 steps is less than one"),
        ([*SHAPE, "--stepz", "5"], "stepz"),
    ],
)
def test_refusals_are_one_line(plan: Any, words: list[str], said: str) -> None:
    code, out, error = plan(*words)
    assert code == 2 and not out
    assert error.startswith("error: ") and error.count("\n") == 1
    assert said in error


@pytest.mark.parametrize(
    ("changes", "said", "mended"),
    [
        (
            {"trainer__devices": "auto"},
            "trainer.devices is auto, which means another number on each",
            ["--devices", "2"],
        ),
        ({"trainer__strategy": "deepspeed"}, "strategy is deepspeed, whose memory is not known", ["--layout", "ddp"]),
        ({"data__batch_size": 0}, "data.batch_size is 0; it must be at least 1", None),
        ({"data__block_rows": 6}, "bag_size 4, which does not divide data.block_rows 6", None),
        ({"model__config__init_args__vocab_size": 100}, "the shards' tokenizer has 320 ids", None),
    ],
)
def test_configurations_are_refused_as_fit_refuses_them(
    plan: Any, shards: Path, tmp_path: Path, changes: dict[str, Any], said: str, mended: list[str] | None
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "run", shards, **changes)))
    code, _, error = plan("--config", str(path))
    assert code == 2 and said in error and error.count("\n") == 1
    if mended:
        assert plan("--config", str(path), *mended)[0] == 0


def test_a_configuration_whose_data_is_not_there_yet_is_planned_for(plan: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_config(tmp_path / "run", tmp_path / "none")))
    code, out, _ = plan("--config", str(path), "--trainer.strategy", "lightning.pytorch.strategies.DDPStrategy")
    assert code == 0 and "data there is: not known" in out and "(ddp, 32-true)" in out
    assert "data.seq_len is 0" in plan("--config", str(path), "--data.seq_len", "0")[2]


def test_one_phase_that_is_not_the_baselines_is_laid_out_as_configured(plan: Any, shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    config = tiny_config(tmp_path / "run", shards)
    del config["model"]["phases"]["recovery"]
    config["model"]["phases"]["superposition"]["init_args"]["share"] = None
    path.write_text(yaml.safe_dump(config))
    arm = json.loads(plan("--config", str(path), "--json")[1])["arms"]["tst"]
    assert {name: (of["steps"], of["bag_size"]) for name, of in arm["phases"].items()} == {"superposition": (20, 4)}


def test_help_and_refusals_wait_for_no_heavy_import() -> None:
    script = (
        "import sys; from tst_lightning.__main__ import main\n"
        "try: main(['plan', '--help'])\nexcept SystemExit: pass\n"
        "main(['plan', '--steps', '5'])\n"
        "print([name for name in ('torch', 'transformers', 'lightning', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
