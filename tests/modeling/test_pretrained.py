"""Weights of a Hugging Face folder: what transformers loads is what the model is given, and nothing less."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tst_lightning.errors import RunError
from tst_lightning.modeling import build_causal_lm, load_weights, read_config

CONFIG = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_model_is_given_what_transformers_loads(folder: Path) -> None:
    lm = build_causal_lm(read_config(folder)).lm
    at = {name: value.data_ptr() for name, value in lm.named_parameters()}
    load_weights(lm, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert lm.state_dict().keys() == loaded.keys()
    for name, value in lm.named_parameters():
        # In place, as a checkpoint's are: products may round by how their operands lie in memory.
        assert value.dtype == torch.float32 and value.data_ptr() == at[name]
        assert torch.equal(value, loaded[name])


def refusal(folder: Path, weights: dict[str, Tensor]) -> str:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError) as caught:
        load_weights(build_causal_lm(CONFIG).lm, folder)
    return str(caught.value)


def test_weights_that_are_not_the_models(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    assert "'model.norm.weight' is missing; restore them" in refusal(folder, weights)
    assert "'model.norm.weight' is of another shape" in refusal(folder, weights | {"model.norm.weight": norm[1:]})
    more = {"model.norm.weight": norm, "b": norm.clone(), "a": norm.clone()}
    assert "'a' is no weight of the model, and 1 more likewise" in refusal(folder, weights | more)


def test_weights_that_could_hold_code(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(RunError, match=r"can't be loaded \(OSError: .*no file named model.safetensors"):
        load_weights(build_causal_lm(CONFIG).lm, folder)
