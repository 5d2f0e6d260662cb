"""``tst fit --model.initial_weights``: what is said, what is recorded, and how such a run goes on."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.conftest import ROOT, SEQ_LEN, tiny_config
from tests.test_resume import assert_same_state, last, signal_at
from tst_lightning.__main__ import main
from tst_lightning.compare.arms import arms_of
from tst_lightning.compare.runs import check_comparable, read_runs
from tst_lightning.modeling import weights_sha256
from tst_lightning.shards.tokenizer import load_tokenizer

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": SEQ_LEN,
}


@pytest.fixture
def folder(tmp_path: Path, shards: Path) -> Path:
    """A model of another shape than the tiny configuration's, with the shards' tokenizer."""
    path = tmp_path / "model"
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, eos_token_id=0)).save_pretrained(path)
    load_tokenizer(str(shards)).save_plain(path)
    return path


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_its_configuration_is_the_run_s(
    fit: Any, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = fit("run", "--model.initial_weights", str(folder))
    assert code == 0
    sha256 = weights_sha256(str(folder))
    assert f"weights   of '{folder}' (sha256 {sha256[:12]}...)\n" in said
    left = re.search(r"note {6}the model is that of '.*'; model.config is left aside: (.*)\n", said)
    assert left and left[1].split("; ") == [
        "hidden_size 32, 16 in the folder",
        "intermediate_size 64, 48 in the folder",
        "num_hidden_layers 2, 1 in the folder",
    ]
    found = record(tmp_path / "run")
    assert found["initial_weights"] == {"folder": str(folder), "sha256": sha256, "tokenizer_compared": True}
    assert {key: found["model"]["config"][key] for key in SHAPE} == SHAPE
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["model"]["config"] is None and settings["model"]["initial_weights"] == str(folder)

    # Without a word of a configuration in the YAML, the same run; and what was saved repeats it.
    config = tiny_config(tmp_path / "bare", tmp_path, **{"data__shards": settings["data"]["shards"]})
    config["model"] |= {"initial_weights": str(folder)}
    del config["model"]["config"]
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    capfd.readouterr()
    assert main(["fit", "--config", str(path)]) == 0
    assert "left aside" not in capfd.readouterr().out
    assert_same_state(last(tmp_path / "run"), last(tmp_path / "bare"))
    assert main(["fit", "--config", str(tmp_path / "run" / "config.yaml"), "--run_dir", str(tmp_path / "again")]) == 0
    assert_same_state(last(tmp_path / "run"), last(tmp_path / "again"))
    for name in ("config.yaml", "run.yaml"):
        given = tmp_path / "run" / name if name == "config.yaml" else tmp_path / name
        capfd.readouterr()
        assert main(["plan", "--config", str(given), "--model.initial_weights", str(folder), "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["parameters"]["total"] == found["model"]["parameters"]


def test_a_run_goes_on_without_the_weights(fit: Any, folder: Path, tmp_path: Path) -> None:
    begin = ["--model.initial_weights", str(folder)]
    assert fit("whole", *begin)[0] == 0
    assert fit("stopped", *begin, *signal_at(7))[0] == 128 + signal.SIGTERM
    (folder / "model.safetensors").unlink()
    code, said = fit("stopped", *begin, "--ckpt_path", "last")
    assert code == 0 and "resumed   at step" in said
    assert_same_state(last(tmp_path / "whole"), last(tmp_path / "stopped"))
    assert record(tmp_path / "stopped")["initial_weights"] == record(tmp_path / "whole")["initial_weights"]
    config = str(tmp_path / "stopped" / "config.yaml")
    assert main(["validate", "--config", config]) == 0
    assert fit("other", *begin)[0] == 2  # a new run needs them


def test_it_is_part_of_what_a_run_is(fit: Any, folder: Path, tmp_path: Path, tiny_run: Path) -> None:
    begin = ["--model.initial_weights", str(folder)]
    assert fit("run", *begin, *signal_at(7))[0] == 128 + signal.SIGTERM
    code, said = fit("run", "--ckpt_path", "last")
    assert code == 2 and f"model.initial_weights was {folder}, now None" in said
    # A checkpoint of a run that drew its weights, of whatever folder: its own is the truth.
    checkpoint = next((tiny_run / "checkpoints").glob("switch-*.ckpt"))
    code, said = fit("new", "--model.initial_weights", str(same_shape(tmp_path)), "--ckpt_path", str(checkpoint))
    assert code == 2 and "did not begin from model.initial_weights" in said


def same_shape(tmp_path: Path) -> Path:
    config = tiny_config(tmp_path, tmp_path)["model"]["config"]["init_args"]
    AutoModelForCausalLM.from_config(LlamaConfig(**config)).save_pretrained(tmp_path / "same")
    return tmp_path / "same"


def test_runs_from_other_weights_are_other_arms(fit: Any, tmp_path: Path, tiny_run: Path) -> None:
    """Comparable with a run that drew its weights; seeds of one arm are those that began from the same ones."""
    folder = same_shape(tmp_path)
    for name, seed in (("one", "1"), ("two", "2")):
        assert fit(name, "--model.initial_weights", str(folder), "--seed_everything", seed)[0] == 0
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code, said = fit("three", "--model.initial_weights", str(folder), "--seed_everything", "3")
    assert code == 0 and "trained with the shards' tokenizer can't be told" in said
    runs = read_runs([str(tiny_run), *(str(tmp_path / name) for name in ("one", "two", "three"))])
    check_comparable(runs)
    assert [[run.name for run in arm.runs] for arm in arms_of(runs)] == [["run"], ["one", "two"], ["three"]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model.initial_weights", "someone/model"], "there is no such folder; name a local one"),
        (["--model.initial_weights", str(ROOT / "LICENSE")], "a file; name a folder with config.json and safetensors"),
        (["--model.config", "null"], "model.config and model.initial_weights are both not given"),
    ],
)
def test_no_model_is_refused_in_one_line(fit: Any, words: list[str], says: str, tmp_path: Path) -> None:
    code, said = fit("run", *words)
    assert code == 2 and says in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_rows_and_ids_must_fit_the_folder(fit: Any, folder: Path, few: Path) -> None:
    begin = ["--model.initial_weights", str(folder)]
    code, said = fit("long", *begin, "--data.seq_len", "32")
    assert code == 2 and f"max_position_embeddings in '{folder}/config.json'" in said
    code, said = fit("other", *begin, "--data.shards", str(few), "--data.pool_blocks", "4")
    assert code == 2 and "ids would mean other tokens" in said and f"--tokenizer {folder}" in said
