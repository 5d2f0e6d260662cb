"""Token superposition: each position reads a bag of tokens and predicts the whole next bag."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tst_lightning.bags import PowerLaw, bag_weights, inputs_and_targets
from tst_lightning.errors import ConfigError
from tst_lightning.losses import LossSum, bag_mass_cross_entropy, multi_hot_cross_entropy
from tst_lightning.phases.base import PhaseStrategy

if TYPE_CHECKING:
    from tst_lightning.modeling import CausalLM

_LARGEST_BAG = 65_536  # more text than a context holds; its weights would be laid out for nothing


class SuperpositionPhase(PhaseStrategy):
    """Full superposition (arXiv 2605.06546, phase 1): bags in, bags out, the transformer untouched.

    A position costs the FLOPs of an ordinary one and carries ``bag_size`` tokens. With a bag size of 1 it is
    next-token training.

    Args:
        bag_size: tokens a bag, s; the published runs use 6 up to 3B parameters and 16 for 10B-A1B.
        share: share of all optimizer steps, r in the paper, 0 to 1; None takes what the other phases leave.
        weighting: the share of the loss that each token of a target bag carries: uniform, power_law (better from
            s = 8 up), fitted_power_law, exponential or first; or the constants of a power law, C0 + a * i**k of token
            i, as {constant: C0, factor: a, exponent: k}.
        objective: multi_hot, or bag_mass: the probability that the bag's distinct tokens have together (the paper's
            MCE-alt, published as equally good); it takes no weighting.

    Raises:
        ConfigError: bag size below 1 or beyond 65,536, unknown weighting or constants that give no weights, a
            weighting with bag_mass, share outside [0, 1].
    """

    def __init__(
        self,
        bag_size: int,
        share: float | None = None,
        weighting: str | PowerLaw = "uniform",
        objective: Literal["multi_hot", "bag_mass"] = "multi_hot",
    ) -> None:
        super().__init__(share)
        if not 1 <= bag_size <= _LARGEST_BAG:
            raise ConfigError(f"bag_size is {bag_size}; it must be at least 1 and at most {_LARGEST_BAG:,}")
        if objective not in ("multi_hot", "bag_mass"):
            raise ConfigError(f"objective is '{objective}'; choose multi_hot or bag_mass")
        if objective == "bag_mass" and weighting != "uniform":
            raise ConfigError(
                f"weighting is {weighting}, but the bag_mass objective has no weights; leave it at uniform"
            )
        try:
            self._weights = {torch.device("cpu"): bag_weights(weighting, bag_size)}
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._bag_size = bag_size
        self.weighting = weighting
        self.objective = objective

    @property
    def bag_size(self) -> int:
        """Tokens a position, s."""
        return self._bag_size

    def row_tokens(self, seq_len: int) -> int:
        """A row holds s * (L + 1): the last bag is only a target."""
        return self._bag_size * (seq_len + 1)

    def forward(self, model: "CausalLM", tokens: Tensor) -> Tensor:
        """(B, s * (L + 1)) ids to (B, L, d) hidden states."""
        bags, _ = inputs_and_targets(tokens, self._bag_size)
        return model.body(model.embed_bags(bags))

    def loss(self, model: "CausalLM", hidden: Tensor, tokens: Tensor, ahead: int = 0) -> LossSum:
        """The objective of (B, L, d) hidden states against bags 1 to L of each row."""
        _, targets = inputs_and_targets(tokens, self._bag_size)
        return self.score(model, hidden, targets[:, ahead:])

    def score(self, model: "CausalLM", hidden: Tensor, targets: Tensor) -> LossSum:
        """The objective over targets of any origin, for phases that choose others.

        Args:
            model: for its LM-head weight.
            hidden: (B, L, d).
            targets: (B, L, s) ids; ``IGNORED`` ones are not scored.

        Returns:
            As :meth:`loss`.
        """
        rows, hidden, targets = len(hidden), hidden.flatten(0, 1), targets.flatten(0, 1)
        if self.objective == "bag_mass":
            loss = bag_mass_cross_entropy(hidden, model.head, targets, model.softcap, model.compiled)
        else:
            weights = self._weights_on(hidden.device)
            loss = multi_hot_cross_entropy(hidden, model.head, targets, weights, model.softcap, model.compiled)
        return loss.by_row(rows)

    def _weights_on(self, device: torch.device) -> Tensor:
        # Kept there: a copy from the host at every step would have the host wait for the device.
        if device not in self._weights:
            weights = self._weights[torch.device("cpu")]
            self._weights[device] = weights.to(device, torch.float32 if device.type == "mps" else weights.dtype)
        return self._weights[device]
