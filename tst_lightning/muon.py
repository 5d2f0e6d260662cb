"""Muon for the matrices of hidden layers, AdamW for all else, as one optimizer: both are torch's own."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Muon, Optimizer

from tst_lightning.errors import ConfigError
from tst_lightning.optim import HIDDEN


class MuonWithAdamW(Optimizer):
    """Moves each matrix W (A, B) of the hidden layers along its orthogonalised momentum (Muon, Jordan et al. 2024, with the
    scale of Liu et al., arXiv 2502.16982), and every other weight by AdamW::

        M <- momentum M + (1 - momentum) G,   W <- W - lr (0.2 sqrt(max(A, B)) NS((1 - momentum) G + momentum M) + wd W)

    NS is ``ns_steps`` Newton-Schulz steps in bfloat16, which take a matrix near the orthogonal one nearest to it. AdamW has
    embeddings, LM head, norms, biases, and whatever is not 2-D, such as a mixture's stacked experts: torch's Muon takes
    matrices alone. Weight decay is as under any optimizer: none for vectors.

    Cost: of a square matrix of width d about 30 d^3 FLOPs a step, which is the share 5 d / P of a training step over P
    positions; they are not counted among the model's FLOPs. State: one number for each weight of a matrix, two for others.
    Of sharded weights each process gathers one matrix after another, with its gradient and momentum, and takes the whole
    step: the numbers are those of one process, and about twice as much is sent in a step.

    Args:
        params: parameter groups of :func:`~tst_lightning.optim.decay_groups`; of others, every 2-D weight is Muon's.
        lr: learning rate of both.
        weight_decay: of both, decoupled.
        momentum: of Muon, 0 to 1; by Nesterov's rule.
        ns_steps: Newton-Schulz steps, 1 to 99.
        adjust_lr_fn: how Muon's step scales with a matrix' shape: ``match_rms_adamw``, as above, has steps of AdamW's size,
            so that one learning rate serves both; ``original`` multiplies by sqrt(max(1, A / B)) instead.
        betas: of AdamW.
        eps: of AdamW.
        fused: AdamW's fused kernel.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool = False,
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ConfigError(f"model.optimizer.momentum is {momentum}; it must lie between 0 and 1, below 1")
        if not 1 <= ns_steps < 100:
            raise ConfigError(f"model.optimizer.ns_steps is {ns_steps}; it must lie between 1 and 99")
        both: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        of_muon: dict[str, Any] = {"momentum": momentum, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        of_adamw: dict[str, Any] = {"betas": betas, "eps": eps, "fused": fused}
        groups = _split(params)
        # Each gives its group the settings that are its kind's alone.
        self._parts: list[Optimizer] = [
            Muon([group], **both, **of_muon) if group["muon"] else AdamW([group], **both, **of_adamw)
            for group in groups
        ]
        super().__init__(groups, both)
        self.defaults |= of_muon | of_adamw

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step with both.

        Args:
            closure: computes loss and gradients.

        Returns:
            What the closure gave.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self._parts, self.param_groups, strict=True):
            if group["muon"] and isinstance(group["params"][0], DTensor):
                for matrix in group["params"]:
                    self._step_sharded(matrix, {key: group[key] for key in part.defaults})
                continue
            # Those that are scheduled, saved and loaded.
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss

    def _step_sharded(self, matrix: Any, settings: dict[str, Any]) -> None:
        if matrix.grad is None:
            return
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        whole = nn.Parameter(matrix.full_tensor())
        whole.grad = matrix.grad.full_tensor()
        one = Muon([whole], **settings)
        one.state[whole]["momentum_buffer"] = state["momentum_buffer"].full_tensor()
        one.step()
        _keep_part(whole.detach(), matrix)
        _keep_part(one.state[whole]["momentum_buffer"], state["momentum_buffer"])


def _split(params: Iterable[Any]) -> list[dict[str, Any]]:
    """Groups of which each is for one of the two, ``muon`` saying which."""
    given = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    split: list[dict[str, Any]] = []
    for group in groups:
        weights = list(group["params"])
        hidden = group.get(HIDDEN) or [weight.ndim == 2 for weight in weights]
        rest = {key: value for key, value in group.items() if key not in ("params", HIDDEN)}
        for use in (True, False):
            mine = [weight for weight, is_hidden in zip(weights, hidden, strict=True) if is_hidden == use]
            if mine:
                split.append(rest | ({"name": "matrices"} if use else {}) | {"params": mine, "muon": use})
    return split


def _keep_part(whole: Tensor, target: DTensor) -> None:
    """Copies this process' part of a tensor that every process has whole."""
    part = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
    target.to_local().copy_(part.to_local())
