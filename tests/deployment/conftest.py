"""Exported models with something to say, and what transformers generates from them; for readers of other makes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import tiny_config
from tst_lightning.__main__ import main

PROMPTS = (
    "def main(",
    "import os",
    "class Parser",
    "    return self.",
    "# The",
    "for name in",
    "if not ",
    "raise ValueError(",
)
NEW_TOKENS = 48
POSITIONS = 64
# Heads of 32: vLLM has no narrower ones on a CPU.
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}
MODELS = {
    "dense": ("transformers.LlamaConfig", {"intermediate_size": 64}),
    "moe": (
        "transformers.Qwen3MoeConfig",
        {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Callable[[str], Path]:
    """The folder of ``dense`` or ``moe``, trained in both phases far enough that no two tokens tie for the likeliest."""
    made: dict[str, Path] = {}

    def export(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            architecture, more = MODELS[name]
            config = tiny_config(
                folder / "run",
                shards,
                model__config={"class_path": architecture, "init_args": SHAPE | more},
                data__seq_len=POSITIONS,
                trainer__max_steps=200,
                trainer__val_check_interval=100,
            )
            (folder / "fit.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            assert main(["fit", "--config", str(folder / "fit.yaml")]) == 0
            last = folder / "run" / "checkpoints" / "last.ckpt"
            assert main(["export", str(last), "--out", str(folder / "exported")]) == 0
            made[name] = folder / "exported"
        return made[name]

    return export


def greedy(folder: Path) -> tuple[Any, dict[str, tuple[list[int], list[int]]]]:
    """The folder's tokenizer; and by prompt its ids and those of the continuation, from transformers in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = {}
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        row = torch.tensor([ids])
        with torch.no_grad():
            out = lm.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=NEW_TOKENS, do_sample=False)
        found[prompt] = (ids, out[0, len(ids) :].tolist())
    assert len({tuple(continuation) for _, continuation in found.values()}) > len(PROMPTS) // 2  # not one rut for all
    return tokenizer, found


def choose(logits: Callable[[list[int]], Any], ids: list[int], end: int) -> list[int]:
    """The continuation by a function from ids to the (V,) logits of the next one."""
    new: list[int] = []
    while len(new) < NEW_TOKENS and (not new or new[-1] != end):
        new.append(int(logits(ids + new).argmax()))
    return new
