"""`tst validate` and `tst test`: a checkpoint and its export score the same bits, on any shards, position by position."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from tests.conftest import ROOT, SEQ_LEN
from tst_lightning.__main__ import main
from tst_lightning.commands.scoring import doubling_ranges
from tst_lightning.shards.manifest import HEADER_BYTES, Manifest

# Of the model alone; what a checkpoint and its export need not have in common.
MODEL = ("model", "step", "phase")


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    assert main(["export", str(last(tiny_run)), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def licence(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second corpus under the first one's tokenizer."""
    folder = tmp_path_factory.mktemp("licence")
    paragraphs = (ROOT / "LICENSE").read_text().split("\n\n")
    (folder / "licence.jsonl").write_text("".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs))
    words = ["--out", str(folder / "shards"), "--tokenizer", str(shards), "--val_share", "0.3"]
    assert main(["prepare", str(folder / "licence.jsonl"), *words]) == 0
    return folder / "shards"


@pytest.fixture
def score(
    tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Scores a model whole, unless told otherwise, by the tiny run's configuration; gives the file and what was printed."""

    def run(model: Path, *words: str, command: str = "validate") -> tuple[dict[str, Any], str]:
        out = tmp_path / "scores.json"
        out.unlink(missing_ok=True)
        whole = ["--config", str(tiny_run / "config.yaml"), "--trainer.limit_val_batches", "1.0"]
        capfd.readouterr()
        code = main([command, *whole, "--ckpt_path", str(model), "--out", str(out), *words])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        return json.loads(out.read_text()), captured.out

    return run


def rows_of(shards: Path) -> torch.Tensor:
    """(N, L + 1) rows of the validation split, read without the data module."""
    manifest = Manifest.read(shards)
    ids = [
        np.fromfile(shards / "val" / chunk["filename"], manifest.dtype, offset=HEADER_BYTES)
        for chunk in manifest.val.chunks
    ]
    width = SEQ_LEN + 1
    return torch.cat([torch.tensor(part[: len(part) // width * width].astype(int)).view(-1, width) for part in ids])


def by_transformers(folder: Path, rows: torch.Tensor) -> torch.Tensor:
    """(L,) mean losses of transformers' own model in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    with torch.no_grad():
        logits = model(input_ids=rows[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return losses.view(len(rows), -1).mean(0)


def test_checkpoint_and_export_score_the_same_bits(score: Any, tiny_run: Path, exported: Path, shards: Path) -> None:
    before = {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()}
    mine, said = score(last(tiny_run))
    theirs, said_of_export = score(exported)
    assert {key: value for key, value in mine.items() if key not in MODEL} == {
        key: value for key, value in theirs.items() if key not in MODEL
    }
    assert {path: path.read_bytes() for path in tiny_run.rglob("*") if path.is_file()} == before

    manifest = Manifest.read(shards)
    assert (mine["step"], mine["phase"]) == (20, {"name": "recovery", "bag_size": 1})
    assert (theirs["step"], theirs["phase"]) == (None, None)
    assert mine["tokenizer_sha256"] == manifest.tokenizer_sha256 and mine["val_sha256"] == manifest.val.sha256
    assert mine["seq_len"] == SEQ_LEN and mine["versions"]["torch"] == torch.__version__.partition("+")[0]
    rows = rows_of(shards)
    assert mine["tokens"] == mine["corpora"]["all"]["tokens_of_split"] == rows[:, 1:].numel()

    expected = by_transformers(exported, rows)
    assert mine["loss_by_position"] == pytest.approx(expected.tolist(), rel=1e-5)
    assert mine["loss"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert mine["perplexity"] == pytest.approx(np.exp(mine["loss"]))
    assert f"{last(tiny_run)}: LlamaForCausalLM, step 20, phase 'recovery'" in said
    assert f"{exported}: LlamaForCausalLM, by the configuration in that folder" in said_of_export
    for label, part in (("0", slice(0, 1)), ("1", slice(1, 2)), ("2-3", slice(2, 4)), ("8-15", slice(8, 16))):
        assert f"  {label:>4}  {expected[part].mean():.4f}\n" in said


def test_a_mixture_and_a_checkpoint_of_superposition(score: Any, tiny_run: Path, shards: Path, licence: Path) -> None:
    """In float64: the mean over positions is the loss; each corpus scores what it does alone."""
    checkpoint = tiny_run / "checkpoints" / "switch-recovery-step=10.ckpt"
    double = ["--trainer.precision", "64-true"]
    mixture = {"stdlib": {"path": str(shards), "weight": 3}, "licence": {"path": str(licence)}}
    mixed, said = score(checkpoint, *double, "--data.shards", json.dumps(mixture))
    assert (mixed["step"], mixed["phase"]) == (10, {"name": "superposition", "bag_size": 4})
    assert "note      in phase 'superposition' positions read and predict bags of 4 tokens; the scores are of" in said
    assert mixed["loss"] == pytest.approx(np.mean(mixed["loss_by_position"]), rel=1e-13)
    for name, path in (("stdlib", shards), ("licence", licence)):
        alone, _ = score(checkpoint, *double, "--data.shards", str(path))
        assert alone["corpora"].pop("all") | {"share": None} == mixed["corpora"][name] | {"share": None}
        assert alone["loss_by_position"] == mixed["corpora"][name]["loss_by_position"]
        assert alone["bits_per_byte"] == mixed["corpora"][name]["bits_per_byte"] != mixed["bits_per_byte"]
    losses = [mixed["corpora"][name]["loss"] for name in mixture]
    assert mixed["loss"] == pytest.approx(0.75 * losses[0] + 0.25 * losses[1], rel=1e-13)


def test_any_model_of_the_shards_tokenizer(score: Any, shards: Path, tmp_path: Path) -> None:
    """Another architecture than the run's, with experts that lie apart in the file, written in bfloat16 by others."""
    torch.manual_seed(3)
    sizes = {"vocab_size": 333, "hidden_size": 32, "num_hidden_layers": 2, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3MoeConfig(**sizes, **heads, num_experts=4, num_experts_per_tok=2, tie_word_embeddings=True)
    folder = tmp_path / "moe"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    scores, said = score(folder, "--trainer.limit_test_batches", "2", command="test")
    assert scores["architecture"] == "Qwen3MoeForCausalLM" and "test/loss" in said
    rows = rows_of(shards)[:64]  # two batches
    assert scores["tokens"] == rows[:, 1:].numel()
    assert scores["loss_by_position"] == pytest.approx(by_transformers(folder, rows).tolist(), rel=1e-5)
    assert "whether the shards' tokenizer is the model's can't be told" in said
    assert f"note      {rows[:, 1:].numel():,} of the {rows_of(shards)[:, 1:].numel():,} tokens of the split" in said


@given(st.integers(1, 5000))
def test_ranges_double_and_hold_every_position_once(positions: int) -> None:
    ranges = doubling_ranges(positions)
    assert [position for part in ranges for position in part] == list(range(positions))
    assert all(len(part) == part.start for part in ranges[1:-1]) and len(ranges[-1]) <= max(1, ranges[-1].start)


@pytest.fixture
def refused(tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Expects a refusal in one line, and gives it."""

    def run(model: Path, *words: str, code: int, command: str = "validate") -> str:
        capfd.readouterr()
        whole = [command, "--config", str(tiny_run / "config.yaml"), "--ckpt_path", str(model)]
        assert main([*whole, *words]) == code
        captured = capfd.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
        assert "Validate metric" not in captured.out
        return captured.err

    return run


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folders_that_are_no_model(refused: Any, copy: Path, tiny_run: Path, tmp_path: Path) -> None:
    assert "is no model: neither a checkpoint of `tst fit`, nor a Hugging Face folder" in refused(tiny_run, code=2)
    configure(copy, model_type="of another world")
    assert "is no configuration that this version of transformers knows" in refused(copy, code=2)
    code = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    configure(copy, auto_map=code)
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "code that a folder brings is not run" in refused(copy, code=2) and not (tmp_path / "ran").exists()
    (copy / "config.json").write_text("{")
    assert "is not a valid JSON file" in refused(copy, code=2)


def test_a_damaged_file(refused: Any, copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "can't be loaded" in (said := refused(copy, code=2)) and "SafetensorError" in said


def test_models_that_do_not_fit_the_shards(refused: Any, copy: Path, tiny_run: Path, few: Path) -> None:
    for model in (copy, last(tiny_run)):
        said = refused(model, "--data.shards", str(few), code=2)
        assert "the shards were made with another tokenizer (sha256 " in said and f"than that of '{model}'" in said
    configure(copy, max_position_embeddings=8)
    assert "the model has 8 positions; lower data.seq_len or raise max_position_embeddings in" in refused(copy, code=2)
    for path in copy.glob("tokenizer*"):
        path.unlink()
    configure(copy, vocab_size=300)
    assert "has 320 ids, the model's vocabulary 300; prepare the text by" in refused(copy, code=2)


def test_a_file_that_is_there_is_kept(refused: Any, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    out.write_text("mine")
    assert f"--out '{out}' is there already; name a new file" in refused(exported, "--out", str(out), code=2)
    assert out.read_text() == "mine"
    assert "which is no folder" in refused(exported, "--out", str(out / "scores.json"), code=2)


@pytest.mark.parametrize("command", ["validate", "test"])
def test_nothing_to_score(refused: Any, tiny_run: Path, command: str) -> None:
    limit = f"limit_{'val' if command == 'validate' else 'test'}_batches"
    said = refused(last(tiny_run), f"--trainer.{limit}", "0", code=2, command=command)
    assert f"trainer.{limit} is 0, so nothing would be scored" in said
