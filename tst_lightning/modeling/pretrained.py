"""A finished model from a Hugging Face folder: its configuration, and its weights into a model of ours.

The folder may come from others: no code of its own is run, and weights are read from safetensors files alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from tst_lightning.errors import RunError, UserError

CONFIG = "config.json"
_PROBLEMS = {
    "missing_keys": "is missing",
    "unexpected_keys": "is no weight of the model",
    "mismatched_keys": "is of another shape",
}
_SOURCE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@contextmanager
def _of_folder(folder: Path) -> Iterator[None]:
    """For transformers' own code on what a folder holds: it fails with whatever its lines happen to hit."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate" in str(error):
            raise
        told = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        reason = f"{type(told).__name__}: {told}".splitlines()[0][:300]
        raise RunError(
            f"the model in '{folder}' can't be loaded ({reason}); it is damaged, or of another kind"
        ) from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the model in a folder.

    Args:
        folder: that holds a config.json.

    Raises:
        RunError: transformers makes no configuration of it.
    """
    with _of_folder(folder):
        return AutoConfig.from_pretrained(folder, **_SOURCE)


def load_weights(lm: PreTrainedModel, folder: Path) -> None:
    """Gives a model the weights of a folder, as transformers itself reads them, in the model's own dtype.

    Each process holds them whole on the CPU, a second time, while it does so.

    Args:
        lm: of the folder's configuration, with its storage; its parameters may be sharded.
        folder: of safetensors files.

    Raises:
        RunError: the files can't be read, or a weight is missing, of another shape, or not of the model.
    """
    logging.disable_progress_bar()
    with _of_folder(folder):
        loading: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are listed, and refused below
            **_SOURCE,
        )
        loaded, found = loading
        for kind, problem in _PROBLEMS.items():
            if names := sorted(found[kind]):
                name = names[0] if isinstance(names[0], str) else names[0][0]
                more = f", and {len(names) - 1:,} more likewise" if len(names) > 1 else ""
                raise RunError(
                    f"the weights in '{folder}' are not those of its configuration: '{name}' {problem}{more}; restore them"
                )
        set_model_state_dict(lm, loaded.state_dict(), options=StateDictOptions(full_state_dict=True))
