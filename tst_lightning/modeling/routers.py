"""A mixture's routers: what they decided in one forward, and the loss that keeps their experts in even use.

transformers records router logits too, by hooks that append to one list. Layers compiled one by one would each see that
list at another length, and need a graph each; nor can a recomputed layer append to it. So hooks of ours note what a
router gave on the router itself: its logits, and the experts that it chose, which logits alone do not tell everywhere.

Shapes: N positions, E experts of a layer, k of them chosen for a position, M layers that hold experts.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tst_lightning.losses import Balance

_ARGUMENTS = ["gate_logits", "num_experts", "top_k"]


class Routers:
    """The routers of a mixture, and how evenly they use their experts.

    Args:
        modules: of M layers, in the order of the layers.
        logits_at: which of a router's results are its logits.
        measure: the architecture's ``load_balancing_loss_func``: (M tensors (N, E), E, k) to a scalar.
        experts: E.
        chosen: k.
    """

    def __init__(
        self, modules: list[nn.Module], logits_at: int, measure: Callable[..., Tensor], experts: int, chosen: int
    ) -> None:
        self.modules = modules
        self.experts = experts
        self.chosen = chosen
        self._logits_at = logits_at
        self._measure = measure
        self._listening = False
        for module in modules:
            module.decided = None  # type: ignore[assignment]
            module.register_forward_hook(self._note)

    @classmethod
    def of(cls, lm: PreTrainedModel) -> "Routers | None":
        """Finds the routers by what transformers names as their class, and the architecture's own measure of balance.

        Args:
            lm: any causal LM.

        Returns:
            None for a dense model, and for a mixture of which transformers does not name routers and measure.
        """
        measure = getattr(sys.modules[type(lm).__module__], "load_balancing_loss_func", None)
        named: Any = (getattr(lm.base_model, "_can_record_outputs", None) or {}).get("router_logits")
        experts, chosen = (getattr(lm, name, None) for name in ("num_experts", "num_experts_per_tok"))
        if measure is None or list(inspect.signature(measure).parameters)[:3] != _ARGUMENTS:
            return None
        if not isinstance(getattr(named, "target_class", None), type) or experts is None or chosen is None:
            return None
        # Routers without a class of their own are named by their place in a layer.
        place = f".{named.layer_name.strip('.')}." if named.layer_name else ""
        modules = [
            module
            for name, module in lm.base_model.named_modules()
            if isinstance(module, named.target_class) and place in f".{name}."
        ]
        return cls(modules, named.index, measure, experts, chosen) if modules else None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notes what the routers decide meanwhile, but not what they decide again where a layer is recomputed later."""
        self._listening = True
        try:
            yield
        finally:
            self._listening = False

    def decisions(self) -> list[tuple[Tensor, Tensor | None]]:
        """Logits (N, E) of the routers that were listened to, in order, and their choices (N, k), None where a router keeps
        them to itself. They are let go here.
        """
        decided = [module.decided for module in self.modules if module.decided is not None]
        for module in self.modules:
            module.decided = None  # type: ignore[assignment]
        return decided  # type: ignore[return-value]

    def measure(self, decided: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """The architecture's own measure of how evenly experts were used, a scalar with gradients."""
        return self._measure(tuple(logits for logits, _ in decided), self.experts, self.chosen)

    def balance(self) -> Balance:
        """How evenly the experts were used in the forward that was listened to."""
        decided = self.decisions()
        # A router that keeps its choice to itself chooses by its logits, as the measure assumes of all.
        chosen = [logits.topk(self.chosen).indices if choice is None else choice for logits, choice in decided]
        # One count for all layers, of indices that go on from layer to layer.
        indices = torch.cat([choice.flatten() + self.experts * layer for layer, choice in enumerate(chosen)])
        loads = torch.zeros(len(decided) * self.experts, dtype=torch.int64, device=indices.device)
        loads.scatter_add_(0, indices, torch.ones_like(indices))
        return Balance(self.measure(decided), loads.view(len(decided), self.experts))

    def _note(self, module: nn.Module, _: Any, results: Any) -> None:
        # Compiled, it is a part of the layer's graph, which has to be the same one when the layer is recomputed.
        if torch.compiler.is_compiling() or self._listening:
            results = results if isinstance(results, tuple) else (results,)
            chosen = next((result for result in results if not result.is_floating_point()), None)
            module.decided = results[self._logits_at], chosen  # type: ignore[assignment]
