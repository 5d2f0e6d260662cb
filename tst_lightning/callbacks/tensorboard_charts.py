"""What TensorBoard shows beyond values over steps: losses over compute and over data, and charts in groups.

A chart of TensorBoard has one axis, the step that its values were written with. So losses are written again under tags
whose step is the compute done, or the tokens read: there runs line up with no work on the reader's side.
"""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from tst_lightning.callbacks.totals import Totals


def _chart(*tags: str) -> list[Any]:
    return ["Multiline", [f"^{tag}$" for tag in tags]]


# Tags by pattern, and the same for every run: TensorBoard merges the layouts of all that it shows.
LAYOUT = {
    "loss at equal compute (steps are GFLOP)": {
        "validation loss": _chart("val_by_gflop/loss"),
        "training loss": _chart("train_by_gflop/.*"),
    },
    "loss at equal data (steps are tokens)": {
        "validation loss": _chart("val_by_token/loss"),
        "training loss": _chart("train_by_token/.*"),
    },
    "accuracy at equal compute (steps are GFLOP)": {
        "average accuracy": _chart("eval_by_gflop/average/.*"),
        "accuracy by task": _chart("eval_by_gflop/.*/acc.*"),
    },
    "training loss of each phase": {"training loss": _chart("train/.*/loss.*"), "validation loss": _chart("val/loss")},
    "throughput": {
        "positions a second": _chart("throughput/positions_per_second"),
        "tokens a second": _chart("throughput/tokens_per_second"),
        "seconds a step": _chart("throughput/step_seconds"),
        "utilisation, of the device's peak": _chart("throughput/[mh]fu"),
    },
    "optimizer": {"learning rate": _chart("lr-.*"), "gradient norm": _chart("train/grad_norm")},
    "memory": {"peak bytes": _chart("memory/.*")},
}


class EqualAxes(Logger):
    """Writes training and validation losses to TensorBoard a second and a third time, over compute and over data.

    A logger, because loggers are handed each value by whoever logs it, at the time that it is of. Tags are
    ``train_by_gflop/``, ``val_by_gflop/``, whose step is 10^9 FLOPs of the model, and ``train_by_token/``,
    ``val_by_token/``, whose step is one token read.

    After a kill the run repeats the steps since its checkpoint, and writes their points again: the same steps, and the same
    values. TensorBoard keeps the later of each. A ``purge_step`` would drop points of all tags alike, whatever their axis.

    Args:
        tensorboard: whose event files are written to.
        done: what training took so far.
    """

    def __init__(self, tensorboard: TensorBoardLogger, done: Callable[[], Totals]) -> None:
        super().__init__()
        self._tensorboard = tensorboard
        self._done = done

    @property
    def name(self) -> str | None:
        """That of the logger written to."""
        return self._tensorboard.name

    @property
    def version(self) -> int | str | None:
        """That of the logger written to."""
        return self._tensorboard.version

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes what of the metrics is a loss, or another score of validation."""
        done = self._done()
        for key, value in metrics.items():
            split, _, rest = key.partition("/")
            if split == "val" or (split == "train" and "loss" in rest.split("/")):
                self._tensorboard.experiment.add_scalar(f"{split}_by_gflop/{rest}", value, done.flops // 10**9)
                self._tensorboard.experiment.add_scalar(f"{split}_by_token/{rest}", value, done.tokens)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the logger written to has them."""


def add_axes(trainer: Trainer, done: Callable[[], Totals]) -> None:
    """Puts an :class:`EqualAxes` beside each of the trainer's TensorBoard loggers, once.

    Args:
        trainer: whose list of loggers is added to.
        done: what training took so far.
    """
    others = [logger for logger in trainer.loggers if not isinstance(logger, EqualAxes)]
    axes = [EqualAxes(logger, done) for logger in others if isinstance(logger, TensorBoardLogger)]
    trainer.loggers = [*others, *axes]


@rank_zero_only
def write_layout(trainer: Trainer) -> None:
    """Groups the charts of TensorBoard's Custom Scalars tab; written at each start, the later replaces the earlier."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(LAYOUT)
