"""What a process of a run says when another one has ended: each machine tells the reason once."""

import re

import torch.distributed as dist
from lightning.pytorch import Trainer

# What torch's backends (gloo, NCCL) say when the process at the other end is gone.
_LOST_PROCESS = re.compile(
    r"gloo/transport|Connection (closed|reset) by peer|remote process exit(ed|ing)|^DataLoader worker"
)


def is_lost_process(error: BaseException | None) -> bool:
    """Whether an error says that the process at the other end is gone, or was raised from one that does.

    Of a dead reading process torch speaks from a signal handler, wherever this process is: a logger, say, takes that for an
    error of its own.
    """
    if error is None:
        return False
    said = isinstance(error, RuntimeError | ConnectionResetError) and _LOST_PROCESS.search(str(error))
    return bool(said) or is_lost_process(error.__cause__)


def said_by_another(message: str, trainer: Trainer) -> bool:
    """Whether another process of the run on this machine has ended with the same message before this one."""
    if not dist.is_initialized():
        return False
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add(f"tst_lightning: {trainer.node_rank}: {message}", 1) > 1
    except RuntimeError:  # the process that kept it, the run's first one, is gone, and has said why on its machine
        return trainer.node_rank == 0 or trainer.local_rank > 0
