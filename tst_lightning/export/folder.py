"""Writes the Hugging Face folder, has a fresh process load it, and lets it appear only if that gave the same model."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import logging

from tst_lightning.errors import ConfigError, RunError
from tst_lightning.export import reload
from tst_lightning.export.card import CARD, Exported, model_card, sampling_warning
from tst_lightning.export.model import build_model, model_config, of_checkpoint
from tst_lightning.export.run_facts import find_tokenizer, read_facts
from tst_lightning.export.trained import TrainedModel, read_trained
from tst_lightning.shards.tokenizer import ShardTokenizer
from tst_lightning.shards.whole_folder import partial_folder, publish

_EXPORTED = {"config.json", "generation_config.json", CARD}
_POSITIONS = 64  # of a row that is compared, at most


@dataclass(frozen=True)
class ExportOptions:
    """How a model is written.

    Attributes:
        dtype: of the weights, float32 or bfloat16.
        tokenizer: folder or tokenizer.json; None takes the run's own, ``none`` leaves it out.
        max_shard_size: of a safetensors file, such as 5GB; None takes transformers' default.
        overwrite: replace an exported model.
    """

    dtype: str = "float32"
    tokenizer: str | None = None
    max_shard_size: str | None = None
    overwrite: bool = False


def export(checkpoint: Path, target: Path, options: ExportOptions) -> Exported:
    """Writes a checkpoint's model as a Hugging Face folder.

    Beside the model there are the tokenizer's files and a model card. A fresh process loads all of it by transformers
    alone; its weights and its logits on text must be those of the checkpoint, bit for bit.

    Args:
        checkpoint: a file of ``tst fit``, or the folder of a sharded one.
        target: the folder to write; it appears when it is whole and checked.
        options: how.

    Raises:
        ConfigError: no checkpoint, no tokenizer, or something in the target that is not to be replaced.
        RunError: the checkpoint is damaged, the folder can't be written, or what was loaded from it differs.
        OSError: the file system refuses.
    """
    _check_replaceable(target, options.overwrite)
    trained = read_trained(checkpoint)
    facts = read_facts(trained)
    config = model_config(trained)
    tokenizer = find_tokenizer(options.tokenizer, facts, config.vocab_size)
    logging.disable_progress_bar()
    with partial_folder(target) as partial:
        print("writing the model ...", file=sys.stderr)
        rows = _rows(config, tokenizer)
        exported, expected = _write(partial, trained, config, tokenizer, rows, options)
        print("loading it in a fresh process ...", file=sys.stderr)
        check_same(load_afresh(partial, rows, tokenizer is not None), expected)
        (partial / CARD).write_text(model_card(trained, facts, exported), encoding="utf-8")
        _check_replaceable(target, options.overwrite)
        publish(partial, target)
    warning = sampling_warning(trained)
    exported.notes += [*([warning] if warning else []), *facts.notes]
    return exported


def _check_replaceable(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigError(f"--out '{target}' is a file; choose a folder")
    found = set(os.listdir(target))
    if not found:
        return
    if not found.issuperset(_EXPORTED):
        raise ConfigError(f"--out '{target}' holds something that is no exported model; choose another --out")
    if not overwrite:
        raise ConfigError(
            f"--out '{target}' holds a model already; replace it with --overwrite, or choose another --out"
        )


def _write(
    folder: Path,
    trained: TrainedModel,
    config: PreTrainedConfig,
    tokenizer: ShardTokenizer | None,
    rows: Tensor,
    options: ExportOptions,
) -> tuple[Exported, dict[str, Any]]:
    """Fills the folder; gives what it holds, and what a process that loads it is to find. Lets go of the weights."""
    end = tokenizer.end_of_document_id if tokenizer else None
    lm = build_model(trained, config, end, getattr(torch, options.dtype))
    with of_checkpoint(trained):
        expected = reload.observe(lm, rows)
    size: dict[str, Any] = {} if options.max_shard_size is None else {"max_shard_size": options.max_shard_size}
    try:
        lm.save_pretrained(folder, **size)
    except SafetensorError as error:
        raise RunError(f"the weights can't be written to '{folder}' ({error}); free some space there") from error
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", path)  # safetensors leaves them to their owner alone
    if tokenizer is not None:
        tokenizer.save_plain(folder)
        expected |= {"ids": _encoded(tokenizer), "end": tokenizer.end_of_document_id}
    exported = Exported(
        architecture=type(lm).__name__,
        parameters=sum(parameter.numel() for parameter in lm.parameters()),
        dtype=options.dtype,
        files=[path.stat().st_size for path in folder.glob("*.safetensors")],
        rows=tuple(rows.shape),
        tokenizer=tokenizer is not None,
    )
    return exported, expected


def _rows(config: PreTrainedConfig, tokenizer: ShardTokenizer | None) -> Tensor:
    """(B, L) ids to compare logits on, at least two rows: of text, or spread over the vocabulary without a tokenizer."""
    positions = min(_POSITIONS, getattr(config, "max_position_embeddings", _POSITIONS))
    if tokenizer is None:
        return (torch.arange(2 * positions) * 7919 % config.vocab_size).view(2, positions)
    ids = torch.tensor(_encoded(tokenizer))
    positions = min(positions, len(ids) // 2)
    return ids[: len(ids) // positions * positions].view(-1, positions)


def _encoded(tokenizer: ShardTokenizer) -> list[int]:
    return tokenizer.encoder().encode(reload.TEXT, add_special_tokens=False).ids


def load_afresh(folder: Path, rows: Tensor, tokenizer: bool) -> dict[str, Any]:
    """Has a fresh process load a folder with transformers alone.

    Args:
        folder: an exported model.
        rows: (B, L) ids.
        tokenizer: whether it has one.

    Returns:
        What :func:`tst_lightning.export.reload.observe` gives of the model, and ``ids`` and ``end`` of the tokenizer.

    Raises:
        RunError: it can't be loaded.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked, found = (str(Path(scratch) / name) for name in ("asked", "found"))
        torch.save({"rows": rows, "tokenizer": tokenizer, "threads": torch.get_num_threads()}, asked)
        done = subprocess.run(
            [sys.executable, "-P", str(reload.__file__), str(folder), asked, found],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise RunError(f"the exported model can't be loaded by transformers in a fresh process ({said})")
        return torch.load(found, weights_only=True)


def check_same(observed: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares what was loaded with what was to be.

    Args:
        observed: from :func:`load_afresh`.
        expected: the same of the checkpoint; without ``ids`` and ``end`` if there is no tokenizer.

    Raises:
        RunError: an id, a weight or a logit differs.
    """
    for key in ("ids", "end"):
        if observed.get(key) != expected.get(key):
            raise RunError(
                f"the exported tokenizer is not the one of the training: its {key} of text are {observed.get(key)} when"
                f" loaded, {expected.get(key)} in training"
            )
    for name in sorted(observed["weights"].keys() | expected["weights"].keys()):
        now, was = (found["weights"].get(name, "absent") for found in (observed, expected))
        if now != was:
            wider = "; the architecture keeps it wider: use --dtype float32" if was[:14] != now[:14] else ""
            raise RunError(
                f"the exported model is not the trained one: '{name}' is {now} when loaded, {was} in the checkpoint{wider}"
            )
    if not torch.equal(*(found["logits"].view(torch.uint8) for found in (observed, expected))):
        most = (observed["logits"].float() - expected["logits"].float()).abs().max()
        raise RunError(
            f"the exported model is not the trained one: with equal weights its logits differ, by up to {most:.3g}"
        )
