"""Loads an exported folder as anyone would who has transformers alone, and writes down what it finds.

Run by its path, in a process of its own, in which nothing of this project can be imported.
"""

import hashlib
import sys
from typing import Any

import torch
from torch import Tensor, nn

# Read by every exported model. Charles Darwin, On the Origin of Species (1859).
TEXT = """When on board H.M.S. Beagle, as naturalist, I was much struck with certain facts in the distribution of the
inhabitants of South America, and in the geological relations of the present to the past inhabitants of that continent.
These facts seemed to me to throw some light on the origin of species, that mystery of mysteries, as it has been called by
one of our greatest philosophers. On my return home, it occurred to me, in 1837, that something might perhaps be made out
on this question by patiently accumulating and reflecting on all sorts of facts which could possibly have any bearing on
it. After five years' work I allowed myself to speculate on the subject, and drew up some short notes.
"""


def observe(model: nn.Module, rows: Tensor) -> dict[str, Any]:
    """What a model is and does, to be compared bit for bit.

    Args:
        model: a Hugging Face causal LM on the CPU, in evaluation mode.
        rows: (B, L) ids.

    Returns:
        ``weights``: name to dtype, shape and SHA-256 of each weight and saved buffer; ``logits``: (B, L, V).
    """
    for parameter in model.parameters():
        # A library's products may round by how their operands are aligned in memory; files align them differently.
        parameter.data = parameter.data.clone()
    weights = {}
    for name, value in model.state_dict().items():
        content = value.contiguous().flatten().view(torch.uint8).numpy()
        weights[name] = f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(content).hexdigest()}"
    with torch.no_grad():
        logits = model(input_ids=rows, use_cache=False).logits
    return {"weights": weights, "logits": logits}


def _main(folder: str, asked: str, found: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    request = torch.load(asked, weights_only=True)
    torch.set_num_threads(request["threads"])
    observed: dict[str, Any] = {}
    if request["tokenizer"]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        observed = {"ids": tokenizer(TEXT)["input_ids"], "end": tokenizer.eos_token_id}
    observed |= observe(AutoModelForCausalLM.from_pretrained(folder), request["rows"])
    torch.save(observed, found)


if __name__ == "__main__":
    sys.modules["tst_lightning"] = None  # type: ignore[assignment] # whoever imports it, fails
    _main(*sys.argv[1:])
