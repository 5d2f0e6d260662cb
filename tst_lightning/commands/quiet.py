"""What Lightning and its libraries say of themselves, and would have users read, is dropped where it does not hold here."""

import logging
import threading
import warnings


def quieten() -> None:
    """Drops what Lightning says about itself, and its warnings that do not hold for this stream."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("litdata.streaming.dataset").setLevel(
        logging.ERROR
    )  # about uneven ranks, in validation as wanted
    logging.getLogger("transformers").setLevel(logging.ERROR)  # about generating text, which no command of these does
    for message in (
        ".*does not have many workers.*",
        ".*LightningCLI's args parameter.*",
        ".*Your `IterableDataset` has `__len__` defined.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The dirpath has changed.*",
        ".*recommended to use .*sync_dist=True.*",  # torchmetrics has reduced what is logged
        r"\s*Unable to serialize instance.*",  # a default that is no text, such as a device
    ):
        warnings.filterwarnings("ignore", message=message)
    threading.excepthook = _background_error


def _background_error(details: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer hands what went wrong on to the next call, which reports it.
    if not type(details.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(details)
