"""The Hugging Face model of a checkpoint: its configuration, untouched, and its weights under their own names."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from tst_lightning.errors import RunError
from tst_lightning.export.trained import TrainedModel

# How a model is run, and what it hands back besides logits: an exported one has its architecture's defaults.
_OF_RUNNING = {"use_cache", "output_router_logits", "output_attentions", "output_hidden_states", "return_dict", "dtype"}


@contextmanager
def of_checkpoint(trained: TrainedModel) -> Iterator[None]:
    """For transformers' and torch's own code on what the checkpoint says.

    Raises:
        RunError: in place of whatever they raise.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunError(
            f"checkpoint '{trained.path}' makes no model of this version of transformers ({reason})"
        ) from error


def model_config(trained: TrainedModel) -> PreTrainedConfig:
    """The model's configuration, without what concerns training.

    Raises:
        RunError: this version of transformers knows no such model.
    """
    settings = {key: value for key, value in trained.settings.items() if key not in _OF_RUNNING}
    with of_checkpoint(trained), tempfile.TemporaryDirectory() as scratch:
        # As a file: only there does transformers read the infinities that it writes.
        Path(scratch, "config.json").write_text(json.dumps(settings), encoding="utf-8")
        return AutoConfig.from_pretrained(scratch, trust_remote_code=False)


def build_model(
    trained: TrainedModel, config: PreTrainedConfig, end: int | None, dtype: torch.dtype
) -> PreTrainedModel:
    """The untouched model of a configuration, on the CPU in evaluation mode, with the checkpoint's weights in it.

    Takes the weights away from ``trained``.

    Args:
        trained: the checkpoint.
        config: from :func:`model_config`; changed to name ``end``.
        end: the end-of-document id; None if it is not known.
        dtype: of the weights.

    Raises:
        RunError: the weights are not those of such a model.
    """
    # A configuration's own are of its family's published tokenizer. Padding stays: its embedding is left out of training.
    config.bos_token_id = config.eos_token_id = end
    weights = {}
    for name in list(trained.weights):
        value = trained.weights.pop(name)
        weights[name] = value.to(dtype) if value.is_floating_point() else value
    with of_checkpoint(trained):
        with no_init_weights():
            lm = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        lm.load_state_dict(weights, assign=True)
    lm.tie_weights()
    lm.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    return lm.eval()
