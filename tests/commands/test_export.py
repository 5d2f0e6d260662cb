"""`tst export`: an ordinary model that transformers alone loads, the same bit for bit; and every refusal."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.conftest import tiny_config
from tests.test_structure import imports
from tst_lightning.__main__ import main
from tst_lightning.errors import RunError
from tst_lightning.export import reload
from tst_lightning.export.folder import check_same
from tst_lightning.modeling import build_causal_lm
from tst_lightning.phases import NextTokenPhase
from tst_lightning.shards.manifest import Manifest
from tst_lightning.shards.tokenizer import load_tokenizer

MOE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 16,
    "router_aux_loss_coef": 0.0,
    "tie_word_embeddings": True,
    "use_cache": False,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Two finished runs: ``dense``, and ``moe``, a tied mixture of experts whose bags are weighted by given constants."""
    folder = tmp_path_factory.mktemp("runs")
    moe = {"class_path": "transformers.Qwen3MoeConfig", "init_args": MOE}
    law = {"constant": 0.25, "factor": 1.5, "exponent": -0.75}
    weighted = {"model__config": moe, "model__phases__superposition__init_args__weighting": law}
    for name, changes in {"dense": {}, "moe": weighted}.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tiny_config(folder / name, shards, **changes), sort_keys=False))
        assert main(["fit", "--config", str(path)]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense run's last checkpoint, in files of 50 kB."""
    out = tmp_path_factory.mktemp("exported") / "dense"
    assert main(["export", str(last(runs)), "--out", str(out), "--max_shard_size", "50KB"]) == 0
    return out


def last(runs: Path, name: str = "dense") -> Path:
    return runs / name / "checkpoints" / "last.ckpt"


def trained_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name.removeprefix("model.lm."): value for name, value in weights.items()}


def on_disk(folder: Path) -> dict[str, tuple[Any, str]]:
    """Shape and dtype of every tensor in the safetensors files, by name."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            found |= {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    return found


def untouched(folder: Path, out: Path, dtype: torch.dtype) -> Path:
    """What transformers writes of a model that it builds from the exported configuration alone."""
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype).save_pretrained(out)
    return out


def test_the_model_is_an_ordinary_one(exported: Path, runs: Path, tmp_path: Path) -> None:
    assert on_disk(exported) == on_disk(untouched(exported, tmp_path / "untouched", torch.float32))
    sizes = [path.stat().st_size for path in exported.glob("model-*.safetensors")]
    assert len(sizes) == 4 and max(sizes) < 50_000 + 2_000  # and names, of which a file's head is made
    loaded = AutoModelForCausalLM.from_pretrained(exported)
    trained = trained_weights(last(runs))
    assert loaded.state_dict().keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.state_dict().items())

    config = json.loads((exported / "config.json").read_text())
    assert config["dtype"] == "float32" and not [key for key in config if "attn" in key]
    assert (config["eos_token_id"], config["bos_token_id"], config["pad_token_id"]) == (0, 0, None)
    ends = GenerationConfig.from_pretrained(exported)
    assert (ends.eos_token_id, ends.pad_token_id) == (0, 0)


def test_its_loss_is_that_of_training(exported: Path, runs: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(exported)
    model = build_causal_lm(AutoConfig.from_pretrained(exported)).eval()
    model.lm.load_state_dict(trained_weights(last(runs)))
    rows = torch.randint(320, (4, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = loaded(input_ids=rows[:, :-1]).logits
        trained = model(rows, NextTokenPhase()).mean
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert loss.item() == pytest.approx(trained.item(), rel=1e-6)


def test_the_tokenizer_is_that_of_the_shards(exported: Path, shards: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer(reload.TEXT).input_ids == load_tokenizer(str(shards)).encoder().encode(reload.TEXT).ids
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert json.loads((exported / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert load_tokenizer(str(exported)).sha256 == Manifest.read(shards).tokenizer_sha256


def test_the_card_tells_how_it_was_trained(exported: Path, runs: Path) -> None:
    card = (exported / "README.md").read_text()
    record = json.loads((runs / "dense" / "run.json").read_text())
    rows = (runs / "dense" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val/loss")
    loss = [cell for row in rows[1:] if (cell := row.split(",")[column])][-1]
    assert f"**{float(loss):.4f}**" in card
    for fact in (
        "# dense, step 20\n",
        "41,120 parameters in float32",
        "arXiv 2605.06546",
        "| superposition | SuperpositionPhase, uniform, multi_hot | 10 | 4 | 2,560 | 640 | 1.258e+08 |",
        "| recovery | NextTokenPhase | 10 | 1 | 640 | 640 | 1.258e+08 |",
        "3.20k tokens read and 252 MFLOP computed",
        record["flops_convention"],
        *(record[f"{name}_sha256"] for name in ("train", "val", "tokenizer")),
        *(f"{name} {number}" for name, number in record["versions"].items()),
        "were the checkpoint's in float32, bit for bit",
    ):
        assert fact in card, fact
    assert "Warning" not in card


def test_an_experts_superposition_checkpoint_in_bfloat16_in_place_of_another(
    exported: Path, runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    checkpoint = runs / "moe" / "checkpoints" / "switch-recovery-step=10.ckpt"
    command = ["export", str(checkpoint), "--out", str(out), "--dtype", "bfloat16", "--tokenizer", "none"]
    assert main(command) == 2
    assert "holds a model already; replace it with --overwrite" in capfd.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    said = capfd.readouterr().out
    assert (
        "note      the checkpoint is from phase 'superposition', in which positions read and predict bags of 4" in said
    )
    card = (out / "README.md").read_text()
    assert "**Warning:** the checkpoint is from phase 'superposition'" in card
    assert "PowerLaw" in card and "-0.75" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "generation_config.json", "README.md", "model.safetensors")
    }

    there = on_disk(out)
    assert there == on_disk(untouched(out, tmp_path / "untouched", torch.bfloat16))
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in there and "lm_head.weight" not in there
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    trained = trained_weights(checkpoint)
    assert loaded.state_dict().keys() == trained.keys()
    assert all(torch.equal(value, trained[name].bfloat16()) for name, value in loaded.state_dict().items())
    assert loaded.config.use_cache and loaded.config.eos_token_id is None


def test_whatever_differs_is_found(exported: Path, tmp_path: Path) -> None:
    rows = torch.arange(32).view(2, 16)

    def observed(folder: Path) -> dict[str, Any]:
        return reload.observe(AutoModelForCausalLM.from_pretrained(folder), rows)

    expected = observed(exported)
    check_same(observed(exported), expected)
    with pytest.raises(RunError, match=r"its ids of text are None when loaded, \[1, 2\] in training"):
        check_same(expected, expected | {"ids": [1, 2]})
    with pytest.raises(RunError, match="with equal weights its logits differ, by up to 1"):
        check_same(expected | {"logits": expected["logits"] + 1}, expected)

    shutil.copytree(exported, tmp_path / "altered")
    path = next((tmp_path / "altered").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # one bit of the last number in the file
    path.write_bytes(content)
    with pytest.raises(RunError, match="is not the trained one: '.*' is torch.float32 .* when loaded, torch.float32"):
        check_same(observed(tmp_path / "altered"), expected)


def test_what_can_not_be_loaded_leaves_nothing(
    runs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert main(["export", str(last(runs)), "--out", str(tmp_path / "out")]) == 1
    assert "error: the exported model can't be loaded by transformers in a fresh process" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_fresh_process_knows_nothing_of_this_project() -> None:
    assert not [name for name in imports(Path(reload.__file__)) if name.startswith("tst_lightning")]
    assert 'sys.modules["tst_lightning"] = None' in Path(reload.__file__).read_text()


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Exports, expects a refusal, and gives its one line; nothing may be left."""

    def export(checkpoint: Path, *options: str, code: int = 2, out: str = "out") -> str:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert main(["export", str(checkpoint), "--out", str(tmp_path / out), *options]) == code
        captured = capfd.readouterr()
        assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return captured.err

    return export


def test_checkpoints_that_are_none(refused: Any, runs: Path, shards: Path, tmp_path: Path) -> None:
    assert "there is no checkpoint at" in refused(tmp_path / "none.ckpt")
    assert "is a run's folder; name one of its checkpoints" in refused(runs / "dense")
    assert "is not whole (no .metadata in it)" in refused(shards, code=1)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(last(runs).read_bytes()[:-1000])
    assert "can't be read (cut off, or of another format)" in refused(path, code=1)
    content = torch.load(last(runs), weights_only=True)
    for changes, said in (
        ({"made_with": {}}, "has no configuration of its model in it"),
        ({"state_dict": {"weight": torch.ones(1)}}, "has no weights named model.lm.* in it"),
    ):
        torch.save(content | changes, path)
        assert said in refused(path, code=1)
    content["made_with"]["model.config"]["model_type"] = "of another world"
    torch.save(content, path)
    assert "makes no model of this version of transformers (" in refused(path, code=1)


def test_folders_that_are_not_to_be_replaced(refused: Any, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is a file; choose a folder" in refused(last(runs), out="file")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "README.md").write_text("mine")
    assert "holds something that is no exported model" in refused(last(runs), "--overwrite", out="thesis")


def test_tokenizers_that_are_not_the_runs(refused: Any, runs: Path, tmp_path: Path, exported: Path) -> None:
    assert "there is no tokenizer at 'nowhere'; name the shards' folder" in refused(
        last(runs), "--tokenizer", "nowhere"
    )
    content = json.loads((exported / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    said = refused(last(runs), "--tokenizer", str(path))
    assert "is another one than the model was trained with (sha256 " in said
    alone = tmp_path / "alone" / "checkpoints" / "last.ckpt"
    alone.parent.mkdir(parents=True)
    shutil.copy(last(runs), alone)
    assert "the run's tokenizer is not at hand (no record of its shards); name" in refused(alone)
    content["model"]["vocab"]["beyond"] = 320
    path.write_text(json.dumps(content))
    assert "has 321 ids, the model 320" in refused(alone, "--tokenizer", str(path))


def test_options_that_are_wrong(refused: Any, runs: Path) -> None:
    assert "--max_shard_size is '5'; write a whole number and KB" in refused(last(runs), "--max_shard_size", "5")
    assert "expected one of 'float32', 'bfloat16', got half" in refused(last(runs), "--dtype", "half")


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from tst_lightning.__main__ import main\n"
        "try: main(['export', '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert not {'lightning', 'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CKPT" in done.stdout and "--max_shard_size" in done.stdout
