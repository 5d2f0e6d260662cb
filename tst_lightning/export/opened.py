"""A trained model ready to run, from a Hugging Face folder or straight from a checkpoint: the same either way."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tst_lightning.errors import ConfigError, RunError
from tst_lightning.export.card import CARD, WARNING, sampling_warning
from tst_lightning.export.model import build_model, model_config
from tst_lightning.export.run_facts import NO_TOKENIZER, RunFacts, find_tokenizer, read_facts
from tst_lightning.export.trained import TrainedModel, read_trained
from tst_lightning.modeling import check_whole, read_config
from tst_lightning.shards.tokenizer import ShardTokenizer, load_tokenizer


@dataclass
class Opened:
    """A model to sample from, or to score.

    Attributes:
        lm: a PreTrainedModel, on the CPU, in evaluation mode.
        tokenizer: transformers' own.
        notes: for the user.
        trained: the checkpoint that it is of, its weights taken away; None of a folder.
        run_dir: folder of the run that the checkpoint lies in; None if it lies in none of its own.
    """

    lm: Any
    tokenizer: Any
    notes: list[str] = field(default_factory=list)
    trained: TrainedModel | None = None
    run_dir: Path | None = None


def open_model(path: Path, tokenizer: str | None, dtype: torch.dtype, sampled: bool = True) -> Opened:
    """Opens a model that text is to be sampled from, or scored by; runs no code of the folder's own.

    A checkpoint gives what its export would: the same weights, configuration and tokenizer.

    Args:
        path: a Hugging Face folder, a checkpoint file of ``tst fit``, or the folder of a sharded one.
        tokenizer: shards' folder or tokenizer.json; None takes the folder's, or that of the run's shards.
        dtype: of the weights.
        sampled: whether text is to be sampled, which a checkpoint whose last phase read bags of tokens is refused for;
            else that is a note.

    Raises:
        ConfigError: no model, no tokenizer, or a checkpoint that is refused.
        RunError: it is damaged.
        OSError: it can't be read.
    """
    logging.disable_progress_bar()
    if tokenizer == NO_TOKENIZER:
        raise ConfigError(f"text needs a tokenizer; --tokenizer is '{NO_TOKENIZER}'")
    folder = path.is_dir() and (path / "config.json").is_file()
    opened = _of_folder(path, tokenizer, dtype) if folder else _of_checkpoint(path, tokenizer, dtype, sampled)
    ids = opened.lm.get_input_embeddings().num_embeddings
    if max(opened.tokenizer.get_vocab().values()) >= ids:
        raise ConfigError(f"the tokenizer has ids beyond the model's {ids:,}; name the model's own with --tokenizer")
    for parameter in opened.lm.parameters():
        # Products may round by how their operands are aligned in memory, and files of other kinds align them differently.
        parameter.data = parameter.data.clone()
    return opened


def _of_folder(folder: Path, tokenizer: str | None, dtype: torch.dtype) -> Opened:
    # Safetensors alone: the other format is pickle.
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = read_config(str(folder))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **safe
        )
    except Exception as error:  # the library's own kinds, torch's and those of safetensors
        raise RunError(f"'{folder}' can't be loaded as a causal language model ({_reason(error)})") from error
    lm, loading = loaded
    check_whole(str(folder), lm, loading)  # of which transformers would only warn
    if tokenizer is not None:
        return Opened(lm.eval(), _plain(load_tokenizer(tokenizer)), _card_warning(folder))
    try:
        found = AutoTokenizer.from_pretrained(folder, **safe)
    except Exception as error:
        raise ConfigError(
            f"'{folder}' has no tokenizer that can be loaded ({_reason(error)}); name one with --tokenizer"
        ) from error
    return Opened(lm.eval(), found, _card_warning(folder))


def _card_warning(folder: Path) -> list[str]:
    """What `tst export` wrote on the card of a model that can't be sampled yet: the weights don't tell."""
    card = folder / CARD
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
    return [f"its model card warns: {line.removeprefix(WARNING)}" for line in lines if line.startswith(WARNING)]


def find_device(name: str) -> torch.device:
    """The device of a name such as ``cuda:1``; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # meta tensors hold nothing
    except Exception as error:  # of torch and of the device's driver
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device '{name}' can't be used here ({reason})") from error
    return device


def _of_checkpoint(path: Path, tokenizer: str | None, dtype: torch.dtype, sampled: bool) -> Opened:
    trained = read_trained(path)
    facts = read_facts(trained)
    facts.notes.clear()  # they are of a model card
    if warning := sampling_warning(trained):
        if sampled:
            raise ConfigError(f"'{path}': {warning} {_to_come(trained, facts)}")
        facts.notes.append(warning)
    config = model_config(trained)
    shards = find_tokenizer(tokenizer, facts, config.vocab_size)
    assert shards is not None  # it is left out by a word that was refused
    several = _several_targets(trained, facts)
    lm = build_model(trained, config, shards.end_of_document_id, dtype)
    run_dir = None if facts.record is None else path.absolute().parent.parent
    return Opened(lm, _plain(shards), [*facts.notes, *several], trained, run_dir)


def _to_come(trained: TrainedModel, facts: RunFacts) -> str:
    """Where in its run a checkpoint of bags stands."""
    where = f"(it is of step {trained.step:,} of {trained.total_steps:,}"
    planned = facts.record["phases"] if facts.record else []
    single = sum(phase["steps"] for phase in planned if phase["bag_size"] == 1 and phase["first_step"] >= trained.step)
    return f"{where}, and {single:,} steps on single tokens are to come)" if single else f"{where})"


def _several_targets(trained: TrainedModel, facts: RunFacts) -> list[str]:
    """A warning if positions of the last phase predicted several tokens, which the run's record tells."""
    last = trained.phases[-1].name if trained.phases else None
    for phase in facts.record["phases"] if facts.record else []:
        settings = phase.get("settings", {})
        settings = settings.get("phase", settings)  # of the phase within a phase
        targets = settings.get("target_tokens", 1)
        if phase["name"] == last and targets > 1 and settings.get("weighting") != "first":
            return [
                f"the checkpoint is from phase '{last}', in which a position reads one token and predicts the next"
                f" {targets} at once: what is sampled as the next token may belong up to that many further on. Take one of"
                " a phase that learns the next token alone"
            ]
    return []


def _plain(shards: ShardTokenizer) -> Any:
    """The tokenizer as it is exported."""
    with tempfile.TemporaryDirectory() as scratch:
        shards.save_plain(Path(scratch))
        return AutoTokenizer.from_pretrained(scratch, local_files_only=True, trust_remote_code=False)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
