"""What the run's folder adds to its checkpoint: the record of the run, its validations, and its tokenizer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tst_lightning.compare.runs import CONFIG_BOOKKEEPING, Point, read_record, read_run
from tst_lightning.errors import ConfigError, UserError
from tst_lightning.export.trained import TrainedModel
from tst_lightning.shards.tokenizer import ShardTokenizer, load_tokenizer

NO_TOKENIZER = "none"


@dataclass
class RunFacts:
    """What is known of a checkpoint's run.

    Attributes:
        record: the contents of its run.json; None if there is none, or none of this run.
        point: the validation at the checkpoint's step; None if there was none.
        notes: what is not known, and why.
    """

    record: dict[str, Any] | None = None
    point: Point | None = None
    notes: list[str] = field(default_factory=list)


def read_facts(trained: TrainedModel) -> RunFacts:
    """Reads the folder of the run that a checkpoint lies in, as far as it is there and of this model.

    Args:
        trained: the checkpoint.
    """
    run_dir = str(trained.path.absolute().parent.parent)
    try:
        record = read_record(run_dir)
        _check_same_model(record, trained)
    except UserError as error:
        return RunFacts(notes=[f"the model card has no facts of the run but those in the checkpoint: {error}"])
    try:
        found = [point for point in read_run(run_dir).curve if point.step == trained.step]
        missing = f"the run has no validation at step {trained.step:,}"
    except UserError as error:
        found, missing = [], str(error)
    if not found:
        return RunFacts(record, notes=[f"the model card has no validation loss: {missing}"])
    return RunFacts(record, found[-1])


def _check_same_model(record: dict[str, Any], trained: TrainedModel) -> None:
    # Another version of transformers knows other keys.
    recorded = record["model"].get("config", {})
    for key in sorted((recorded.keys() & trained.settings.keys()) - CONFIG_BOOKKEEPING):
        if recorded[key] != trained.settings[key]:
            raise ConfigError(
                f"run.json is of another model ({key} is {recorded[key]} there, {trained.settings[key]} here)"
            )


def find_tokenizer(name: str | None, facts: RunFacts, vocab_size: int) -> ShardTokenizer | None:
    """The tokenizer that a model was trained with.

    Args:
        name: a folder or tokenizer.json; None looks in the run's own shards, ``none`` leaves it out.
        facts: of the run.
        vocab_size: of the model.

    Returns:
        None if it is to be left out.

    Raises:
        ConfigError: there is none, it can't be loaded, it is another one than the run's, or the model has fewer ids.
    """
    if name == NO_TOKENIZER:
        return None
    choices = (
        f"name the shards' folder or a tokenizer.json with --tokenizer, or leave it out by --tokenizer {NO_TOKENIZER}"
    )
    if name is None:
        shards = [corpus["path"] for corpus in (facts.record or {}).get("corpora", {}).values()]
        name = next((path for path in shards if (Path(path) / "tokenizer.json").is_file()), None)
        if name is None:
            tried = f"shards at {', '.join(shards)}" if shards else "no record of its shards"
            raise ConfigError(f"the run's tokenizer is not at hand ({tried}); {choices}")
    if not Path(name).exists():
        raise ConfigError(f"there is no tokenizer at '{name}'; {choices}")
    loaded = load_tokenizer(name)
    expected = (facts.record or {}).get("tokenizer_sha256")
    if expected is None:
        facts.notes.append(
            f"whether tokenizer '{name}' is the one of the training can't be told without a record of the run"
        )
    elif loaded.sha256 != expected:
        raise ConfigError(
            f"tokenizer '{name}' is another one than the model was trained with (sha256 {loaded.sha256[:12]}...,"
            f" {expected[:12]}... in run.json); {choices}"
        )
    if loaded.vocab_size > vocab_size:
        raise ConfigError(
            f"tokenizer '{name}' has {loaded.vocab_size:,} ids, the model {vocab_size:,}: it is another one than the model"
            f" was trained with; {choices}"
        )
    return loaded
