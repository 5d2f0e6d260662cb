"""First weights from a Hugging Face folder: what model it holds, of which tokenizer, and its weights on any layout.

Only ``config.json``, ``tokenizer.json`` and safetensors are used. No code that a folder brings is run, and no pickle read.
"""

import hashlib
import json
import traceback
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from tst_lightning.errors import ConfigError
from tst_lightning.modeling.initialise import copy_values
from tst_lightning.shards.tokenizer import load_tokenizer

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_READ_BYTES = 1 << 24


def read_config(folder: str) -> PreTrainedConfig:
    """The configuration of the model in a folder.

    Raises:
        ConfigError: there is no such folder, or it holds no whole model of an architecture that transformers itself knows.
    """
    path = Path(folder)
    if path.is_file():
        raise ConfigError(
            f"model.initial_weights is '{folder}', a file; name a folder with config.json and safetensors: of a checkpoint"
            " `tst export` makes one"
        )
    if not path.is_dir():
        raise ConfigError(
            f"model.initial_weights is '{folder}', and there is no such folder; name a local one with config.json and"
            " safetensors, such as `tst export` writes (nothing is fetched from a hub: download the model first)"
        )
    if not (path / "config.json").is_file():
        raise ConfigError(f"'{folder}' has no config.json; name the folder that holds the model")
    if (path / "adapter_config.json").exists():
        raise ConfigError(f"'{folder}' holds an adapter; merge it into its model, and save that")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever files and transformers say
        raise ConfigError(
            f"'{folder}/config.json' is no configuration that this version of transformers knows ({_reason(error)});"
            " code that a folder brings is not run: choose another model"
        ) from error
    if getattr(config, "transformers_weights", None) is not None:  # read in place of those that are hashed
        raise ConfigError(f"'{folder}/config.json' names another file of weights (transformers_weights); take that out")
    if "/" in str(getattr(config, "_attn_implementation", None)):
        raise ConfigError(
            f"'{folder}/config.json' names attention code of a hub ({config._attn_implementation}), and code that a folder"
            " brings is not run; take attn_implementation out"
        )
    if not hasattr(config, "vocab_size"):
        raise ConfigError(
            f"the {type(config).__name__} in '{folder}' is of a model of more than text, which holds a language model among"
            " others; save that one alone, and name its folder"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ConfigError(
            f"the weights in '{folder}' are quantised, which nothing here reads; take the model they are of"
        )
    return config


def weights_sha256(folder: str) -> str:
    """SHA-256 over the bytes of a folder's safetensors files, in the order of their names; reads all of them.

    Raises:
        ConfigError: as :func:`load_weights`, of the files.
        OSError: they can't be read.
    """
    whole = hashlib.sha256()
    for path in _files(folder):
        with open(path, "rb") as file:
            while part := file.read(_READ_BYTES):
                whole.update(part)
    return whole.hexdigest()


def check_same_tokenizer(folder: str, sha256: str) -> bool:
    """Refuses a model that has learned other ids: of its folder's tokenizer, where that is not the shards'.

    Args:
        folder: of the model.
        sha256: of the shards' tokenizer, as in their manifest.

    Returns:
        Whether it could be told: False if the folder has no tokenizer.json, or none that can be loaded.

    Raises:
        ConfigError: it is another one.
    """
    if not (Path(folder) / "tokenizer.json").is_file():
        return False
    try:
        found = load_tokenizer(folder).sha256
    except ConfigError:
        return False
    if found != sha256:
        raise ConfigError(
            f"the tokenizer in '{folder}' is not the one that the shards were made with (sha256 {found[:12]}... and"
            f" {sha256[:12]}...): ids would mean other tokens than the weights have learned; prepare the text by"
            f" `tst prepare ... --tokenizer {folder}`"
        )
    return True


@torch.no_grad()
def load_weights(lm: PreTrainedModel, folder: str, device: torch.device) -> None:
    """Gives a model on the meta device its storage on another, and the weights of a folder, in float32.

    transformers reads them, which knows how each architecture's lie on disk (those of a mixture expert by expert). Each
    process reads all of them on its CPU, and keeps its part: for a while it holds the whole model there, 4 bytes a
    parameter.

    Args:
        lm: on the meta device, in float32, built from the folder's configuration; its parameters may be sharded already.
        folder: of the model.
        device: of this process.

    Raises:
        ConfigError: the folder has no safetensors, or they are damaged; a weight is missing, of another shape, or of no
            use in the model: each is named, and none drawn at random in its place.
    """
    whole = _read(folder)
    values = _named(whole)
    lm.to_empty(device=device)
    lm.tie_weights()
    firsts: dict[int, str] = {}
    for name, target in _named(lm).items():
        first = firsts.setdefault(id(target), name)
        if first == name:
            copy_values(values[name], target)
        elif values[first] is not values[name]:
            raise ConfigError(
                f"'{folder}' has other values for '{name}' than for '{first}', though its config.json ties them; set"
                " tie_word_embeddings to false there"
            )


def _named(lm: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones under each of their names."""
    return dict(chain(lm.named_parameters(remove_duplicate=False), lm.named_buffers(remove_duplicate=False)))


def _files(folder: str) -> list[Path]:
    """The safetensors that transformers would read."""
    path = Path(folder)
    names = [_WEIGHTS]
    if not (path / _WEIGHTS).exists():
        if not (path / _INDEX).exists():
            raise ConfigError(
                f"'{folder}' has no {_WEIGHTS} and no {_INDEX}; other forms are not read, pickled"
                " ones (.bin) since they may run code: load it by transformers, and save it by save_pretrained"
            )
        try:
            names = sorted(set(json.loads((path / _INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"'{path / _INDEX}' can't be understood ({error!r}); copy the folder again") from error
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise ConfigError(f"'{path / missing[0]}' is missing, which {_INDEX} names; copy the folder again")
    return [path / name for name in names]


def _read(folder: str) -> PreTrainedModel:
    _files(folder)
    logging.disable_progress_bar()
    try:
        with torch.device("cpu"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # which it then names, all of them
                output_loading_info=True,
            )
    except MemoryError:
        raise
    except Exception as error:  # of safetensors and transformers
        raise ConfigError(
            f"the weights in '{folder}' can't be loaded ({_unconverted(error) or _reason(error)})"
        ) from error
    whole, found = loaded
    check_whole(folder, whole, found)
    return whole


def check_whole(folder: str, whole: PreTrainedModel, found: dict[str, Any]) -> None:
    """Refuses a model of which transformers has drawn weights at random, or left out some of the folder's.

    Args:
        folder: of the model.
        whole: as loaded from it.
        found: what ``from_pretrained`` tells of its loading.

    Raises:
        ConfigError: names the first such weight.
    """
    wrong = [f"'{name}' is missing" for name in sorted(found["missing_keys"])]
    wrong += [
        f"'{name}' has shape {tuple(there)}, {tuple(here)} by config.json"
        for name, there, here in sorted(found["mismatched_keys"])
    ]
    wrong += [f"'{name}' is no part of the model" for name in sorted(found["unexpected_keys"])]
    if wrong:
        more = f", and {len(wrong) - 1} more of that kind" if len(wrong) > 1 else ""
        raise ConfigError(
            f"the weights in '{folder}' are not those of the {type(whole).__name__} in its config.json: {wrong[0]}{more};"
            " name a folder whose files belong together"
        )


def _unconverted(error: Exception) -> str | None:
    """Which weight transformers could not put together from those on disk; its own message refers to a log."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        failed: dict[str, Any] = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None) or {}
        for name in sorted(failed):
            return f"'{name}': {failed[name].strip().splitlines()[-1]}"
    return None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
