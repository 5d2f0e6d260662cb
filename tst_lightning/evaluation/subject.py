"""The model that is evaluated: of a checkpoint or of an exported folder, with its tokenizer."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from tst_lightning.errors import ConfigError, RunError
from tst_lightning.export.model import build_model, model_config
from tst_lightning.export.run_facts import NO_TOKENIZER, find_tokenizer, read_facts
from tst_lightning.export.trained import TrainedModel, read_trained
from tst_lightning.shards.tokenizer import ShardTokenizer, load_tokenizer


@dataclass
class Subject:
    """A model to be evaluated.

    Attributes:
        lm: in evaluation mode, on its device.
        tokenizer: transformers' own, as an exported folder has it.
        trained: the checkpoint that it is of; None of an exported folder.
        run_dir: folder of the run that the checkpoint lies in; None if it lies in none.
        notes: for the user.
    """

    lm: PreTrainedModel
    tokenizer: Any
    trained: TrainedModel | None = None
    run_dir: Path | None = None
    notes: list[str] = field(default_factory=list)


def read_subject(path: Path, tokenizer: str | None, dtype: str, device: str) -> Subject:
    """Reads a model and its tokenizer; a checkpoint gives what its export would.

    Args:
        path: of a checkpoint, a file or a sharded one's folder; or an exported folder.
        tokenizer: folder or tokenizer.json; None takes the run's own, or that in the exported folder.
        dtype: of the weights, float32 or bfloat16.
        device: by torch's name; ``auto`` is the accelerator if there is one.

    Raises:
        ConfigError: no such model, tokenizer or device, or a tokenizer that is not the model's.
        RunError: the model is damaged, or does not fit the device.
    """
    place = _device(device)
    if tokenizer == NO_TOKENIZER:
        raise ConfigError(
            f"--tokenizer is {NO_TOKENIZER}, but tasks are text; name the shards' folder or a tokenizer.json"
        )
    logging.disable_progress_bar()
    read = _of_folder if (path / "config.json").is_file() else _of_checkpoint
    subject = read(path, tokenizer, getattr(torch, dtype))
    for parameter in subject.lm.parameters():
        # Products may round by how their operands are aligned in memory, and files of other kinds align them differently.
        parameter.data = parameter.data.clone()
    try:
        subject.lm.to(place)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise RunError(f"the model does not fit the memory of {place}; try --dtype bfloat16 or --device cpu") from error
    return subject


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except Exception as error:  # of torch and of the device's driver
        raise ConfigError(f"--device '{name}' can't be used here ({str(error).splitlines()[0]})") from error


def _of_checkpoint(path: Path, tokenizer: str | None, dtype: torch.dtype) -> Subject:
    trained = read_trained(path)
    facts = read_facts(trained)
    facts.notes.clear()  # they are of a model card
    config = model_config(trained)
    shards = find_tokenizer(tokenizer, facts, config.vocab_size)
    assert shards is not None  # it is left out by a word that was refused
    if (phase := trained.superposed) is not None:
        facts.notes.append(
            f"the checkpoint is from phase '{phase.name}', in which positions read and predict bags of {phase.bag_size}"
            " tokens: its scores are of single tokens, which it has not learned yet"
        )
    return Subject(
        lm=build_model(trained, config, shards.end_of_document_id, dtype),
        tokenizer=_plain(shards),
        trained=trained,
        run_dir=None if facts.record is None else path.absolute().parent.parent,
        notes=facts.notes,
    )


def _of_folder(folder: Path, tokenizer: str | None, dtype: torch.dtype) -> Subject:
    # Safetensors alone: the other format is pickle.
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        lm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **safe)
    except Exception as error:  # the library's own kinds, torch's and those of safetensors
        raise RunError(f"'{folder}' can't be loaded as a causal language model ({_reason(error)})") from error
    if tokenizer is not None:
        return Subject(lm.eval(), _plain(load_tokenizer(tokenizer)))
    try:
        return Subject(lm.eval(), AutoTokenizer.from_pretrained(folder, **safe))
    except Exception as error:
        raise ConfigError(
            f"'{folder}' has no tokenizer that can be loaded ({_reason(error)}); name one with --tokenizer"
        ) from error


def _plain(shards: ShardTokenizer) -> Any:
    """The tokenizer as it is exported."""
    with tempfile.TemporaryDirectory() as scratch:
        shards.save_plain(Path(scratch))
        return AutoTokenizer.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
