"""What ``tst validate`` and ``tst test`` score, and what they say of it: a table, and a file for programs."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import PreTrainedConfig

from tst_lightning.callbacks.run_record import versions
from tst_lightning.commands.run_folder import find_checkpoint
from tst_lightning.data.datamodule import TokenDataModule
from tst_lightning.errors import ConfigError
from tst_lightning.export.trained import Progress, read_progress
from tst_lightning.modeling import read_config
from tst_lightning.module import SuperpositionModule
from tst_lightning.sharded_checkpoint import CONTENTS, TRAINER_STATE
from tst_lightning.shards.tokenizer import load_tokenizer
from tst_lightning.whole_file import write_whole


@dataclass(frozen=True)
class Scored:
    """A model to be scored.

    Attributes:
        path: of a checkpoint, or of a Hugging Face folder.
        config: the folder's own; None for a checkpoint, whose model the run's configuration names.
        progress: of the checkpoint's training; None for a folder, which does not say.
        tokenizer_sha256: of the tokenizer that it was trained with; None if it can't be told.
    """

    path: Path
    config: PreTrainedConfig | None
    progress: Progress | None
    tokenizer_sha256: str | None


def find_scored(run_dir: Path, name: str | None) -> Scored:
    """The model that ``--ckpt_path`` names, looked through as far as that goes without its weights.

    Args:
        run_dir: folder of the run.
        name: a checkpoint, a Hugging Face folder, or None or ``last`` for the run's own last checkpoint.

    Raises:
        ConfigError: there is none.
        RunError: it is damaged, or of another program.
    """
    name = name or "last"
    folder = Path(name)
    is_folder = name != "last" and folder.is_dir()
    if is_folder and (folder / "config.json").exists():
        config = read_config(str(folder))
        tokenizer = load_tokenizer(str(folder)).sha256 if (folder / "tokenizer.json").exists() else None
        return Scored(folder, config, None, tokenizer)
    if is_folder and not any((folder / part).exists() for part in (CONTENTS, TRAINER_STATE)):
        raise ConfigError(
            f"'{folder}' (--ckpt_path) is no model: neither a checkpoint of `tst fit`, nor a Hugging Face folder (no"
            " config.json in it); name a file such as RUN/checkpoints/last.ckpt, or what `tst export` wrote"
        )
    found = find_checkpoint(run_dir, name)
    if found is None:
        raise ConfigError(f"there is no last checkpoint in '{run_dir}'; name one with --ckpt_path")
    progress = read_progress(found.path)
    return Scored(found.path, None, progress, progress.tokenizer_sha256)


def check_tokenizer(scored: Scored, data: TokenDataModule) -> None:
    """Refuses shards whose ids mean other text than those that the model was trained on.

    Raises:
        ConfigError: they were made with another tokenizer than the model's.
    """
    here, there = data.tokenizer.tokenizer_sha256, scored.tokenizer_sha256
    if there not in (None, here):
        raise ConfigError(
            f"the shards were made with another tokenizer (sha256 {here[:12]}...) than that of '{scored.path}'"
            f" ({there[:12]}...): prepare them with that one (`tst prepare --tokenizer`)"
        )


def check_out(out: str | None) -> None:
    """Refuses a file that can't be written, before the work is done.

    Raises:
        ConfigError: there is something already, or no folder can be made for it.
    """
    if out is not None and Path(out).exists():
        raise ConfigError(f"--out '{Path(out)}' is there already; name a new file, such as scores.json")
    above = next((each for each in Path(out).absolute().parents if each.exists()), None) if out else None
    if above is not None and not above.is_dir():
        raise ConfigError(f"--out '{out}' lies in '{above}', which is no folder; name a new file, such as scores.json")


def doubling_ranges(positions: int) -> list[range]:
    """Ranges that cut positions 0 to ``positions - 1``, each as long as all before it: 0, 1, 2-3, 4-7 and so on."""
    starts = [0, *(1 << k for k in range((positions - 1).bit_length()))]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], positions], strict=True)]


def mixed_by_position(model: SuperpositionModule, data: TokenDataModule) -> Tensor:
    """(L,) nats a token, the mean over corpora by share, as the loss is."""
    return torch.stack([corpus.share * model.loss_by_position[corpus.name] for corpus in data.corpora]).sum(0)


def said(scored: Scored, model: SuperpositionModule, data: TokenDataModule) -> str:
    """What is printed below Lightning's table."""
    name, progress = type(model.model.lm).__name__, scored.progress
    if progress is None:
        lines = [f"scored    {scored.path}: {name}, by the configuration in that folder (model.config is left aside)"]
        if scored.tokenizer_sha256 is None:
            lines.append("note      whether the shards' tokenizer is the model's can't be told: the folder has none")
    else:
        phase = f", phase '{progress.phases[-1].name}'" if progress.phases else ""
        lines = [f"scored    {scored.path}: {name}, step {progress.step:,}{phase}"]
        if superposed := progress.superposed:
            lines.append(
                f"note      in phase '{superposed.name}' positions read and predict bags of {superposed.bag_size} tokens;"
                " the scores are of single next tokens, as in the validations of its training"
            )
    tokens, whole = int(model.scores["tokens"]), sum(map(data.val_tokens, data.corpora))
    if tokens != whole:
        lines.append(f"note      {tokens:,} of the {whole:,} tokens of the split were scored (trainer.limit_*_batches)")
    losses = mixed_by_position(model, data)
    rows = [
        (f"{part.start}-{part.stop - 1}" if len(part) > 1 else f"{part.start}", losses[part.start : part.stop].mean())
        for part in doubling_ranges(len(losses))
    ]
    width = max(len(label) for label, _ in rows)
    lines += ["loss by position in the context, nats a token"]
    return "\n".join([*lines, *(f"  {label:>{width}}  {loss.item():.4f}" for label, loss in rows)])


def write_scores(
    path: Path, scored: Scored, model: SuperpositionModule, data: TokenDataModule, trainer: Trainer
) -> None:
    """Writes all figures, and what they are of, as JSON.

    Raises:
        OSError: the file system refuses.
    """
    progress, scores = scored.progress, {name: _number(value) for name, value in model.scores.items()}
    last = progress.phases[-1] if progress and progress.phases else None
    kinds = [name for name in scores if "/" not in name]
    several = len(data.corpora) > 1
    document = {
        "model": str(scored.path),
        "architecture": type(model.model.lm).__name__,
        "step": progress and progress.step,
        "phase": last and {"name": last.name, "bag_size": last.bag_size},
        "split": "val",
        **{kind: scores[kind] for kind in kinds},
        "loss_by_position": [_number(loss) for loss in mixed_by_position(model, data)],
        "corpora": {
            corpus.name: {
                "path": corpus.path,
                "share": corpus.share,
                "val_sha256": corpus.manifest.val.sha256,
                **{kind: scores[f"{kind}/{corpus.name}" if several else kind] for kind in kinds},
                "tokens_of_split": data.val_tokens(corpus),
                "loss_by_position": [_number(loss) for loss in model.loss_by_position[corpus.name]],
            }
            for corpus in data.corpora
        },
        "seq_len": data.seq_len,
        **data.hashes,
        "precision": str(trainer.precision),
        "device": f"{trainer.world_size} x {trainer.strategy.root_device.type}",
        "versions": versions(),
    }
    write_whole(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def _number(value: Tensor) -> float | None:
    """None where JSON has no number: of a model that diverged."""
    return value.item() if math.isfinite(value) else None
