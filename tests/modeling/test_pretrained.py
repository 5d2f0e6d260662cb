"""First weights from a folder: those that transformers would load, in float32, and every folder that is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from tst_lightning.errors import ConfigError
from tst_lightning.modeling import build_causal_lm, check_same_tokenizer, load_weights, read_config, weights_sha256
from tst_lightning.shards.manifest import Manifest
from tst_lightning.shards.tokenizer import load_tokenizer

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
LLAMA = LlamaConfig(**SIZES, intermediate_size=32)
MIXTURE = Qwen3MoeConfig(**SIZES, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2)
EXPERT = "model.layers.0.mlp.experts.1.{}_proj.weight"


def save(folder: Path, config: PreTrainedConfig, dtype: torch.dtype = torch.float32, **how: Any) -> str:
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder, **how)
    return str(folder)


def loaded(folder: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        lm = build_causal_lm(read_config(folder)).lm
    load_weights(lm, folder, torch.device("cpu"))
    assert not [name for name, value in [*lm.named_parameters(), *lm.named_buffers()] if value.is_meta]
    # What is not saved has its values too.
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(value, dict(whole.named_buffers())[name]) for name, value in lm.named_buffers())
    return lm.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        MIXTURE,
        LlamaConfig(**SIZES, intermediate_size=32, tie_word_embeddings=True),
        GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2),
    ],
    ids=["untied", "mixture", "tied", "gpt2"],
)
def test_weights_are_those_that_transformers_loads(
    config: PreTrainedConfig, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save(tmp_path, config, dtype, max_shard_size="5KB")
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    found = loaded(folder)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name].float()), name


def test_nothing_is_drawn(tmp_path: Path) -> None:
    folder = save(tmp_path, LLAMA)
    torch.manual_seed(1)
    first = loaded(folder)
    torch.manual_seed(2)
    assert all(torch.equal(value, first[name]) for name, value in loaded(folder).items())


Change = Callable[[dict[str, Tensor]], Any]
WRONG_WEIGHTS: dict[str, tuple[PreTrainedConfig, Change, str]] = {
    "missing": (LLAMA, lambda w: w.pop("model.norm.weight"), "'model.norm.weight' is missing;"),
    "two missing": (
        LLAMA,
        lambda w: (w.pop("model.norm.weight"), w.pop("lm_head.weight")),
        "'lm_head.weight' is missing, and 1 more of that kind;",
    ),
    "shape": (
        LLAMA,
        lambda w: w.update({"model.norm.weight": torch.ones(3)}),
        r"'model.norm.weight' has shape \(3,\), \(16,\) by config.json",
    ),
    "unexpected": (LLAMA, lambda w: w.update({"foo.bar": torch.ones(3)}), "'foo.bar' is no part of the model"),
    "half an expert": (
        MIXTURE,
        lambda w: w.pop(EXPERT.format("up")),
        "can't be loaded .*experts.gate_up_proj",
    ),
    "an expert's output": (
        MIXTURE,
        lambda w: w.pop(EXPERT.format("down")),
        r"experts.down_proj' has shape \(3, 16, 8\), \(4, 16, 8\)",
    ),
    "tied, and other values": (
        LlamaConfig(**SIZES, intermediate_size=32, tie_word_embeddings=True),
        lambda w: w.update({"lm_head.weight": torch.ones(50, 16)}),
        "other values for 'lm_head.weight' than for 'model.embed_tokens.weight', though its config.json ties them",
    ),
}


@pytest.mark.parametrize(("config", "change", "says"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS.keys())
def test_wrong_weights_are_named(config: PreTrainedConfig, change: Change, says: str, tmp_path: Path) -> None:
    folder = save(tmp_path, config)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=says) as refused:
        loaded(folder)
    assert "\n" not in str(refused.value)


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def indexed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')


def configured(**keys: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


OF_OTHERS = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
WRONG_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (cut_off, "can't be loaded .*SafetensorError"),
    "pickled": (pickled, r"pickled\s+ones \(.bin\) since they may run code"),
    "a file missing": (indexed, "model-1.safetensors' is missing, which model.safetensors.index.json names"),
    "no index": (
        lambda folder: (indexed(folder), (folder / "model.safetensors.index.json").write_text("[]")),
        "can't be understood",
    ),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "code of its own": (configured(**OF_OTHERS), "code that a folder brings is not run"),
    "quantised": (configured(quantization_config={"quant_method": "fp8"}), "are quantised"),
    "other weights": (configured(transformers_weights="other.safetensors"), "names another file of weights"),
    "a hub's attention": (configured(attn_implementation="some/kernel"), "names attention code of a hub"),
    "of images too": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "gemma3"}'),
        "Gemma3Config in .* is of a model of more than text",
    ),
    "an adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds an adapter"),
}


@pytest.mark.parametrize(("change", "says"), WRONG_FOLDERS.values(), ids=WRONG_FOLDERS.keys())
def test_other_folders_are_refused(change: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    folder = save(tmp_path, LLAMA)
    change(tmp_path)
    with pytest.raises(ConfigError, match=says) as refused:
        loaded(folder)
    assert "\n" not in str(refused.value)


def test_the_hash_is_of_the_weights_alone(tmp_path: Path) -> None:
    folder = save(tmp_path, LLAMA, max_shard_size="5KB")
    before = weights_sha256(folder)
    configured(rms_norm_eps=1.0)(tmp_path)
    assert weights_sha256(folder) == before
    path = max(tmp_path.glob("model-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert weights_sha256(folder) != before


def test_another_tokenizer_is_refused(shards: Path, few: Path, tmp_path: Path) -> None:
    sha256 = Manifest.read(shards).tokenizer_sha256
    assert not check_same_tokenizer(str(tmp_path), sha256)  # there is none to tell by
    load_tokenizer(str(shards)).save_plain(tmp_path)
    assert check_same_tokenizer(str(tmp_path), sha256)
    with pytest.raises(ConfigError, match="ids would mean other tokens"):
        check_same_tokenizer(str(tmp_path), Manifest.read(few).tokenizer_sha256)
