"""What training took, as numbers that add up: over phases, over steps, over the starts of a run."""

from dataclasses import asdict, dataclass


@dataclass
class Totals:
    """What a stretch of training took, over all ranks.

    Attributes:
        flops: of the model, what it takes to compute its loss and gradients once.
        tokens: read.
        positions: of the transformer, computed.
        seconds: wall time of training, and of its wait for data.
        hardware_flops: that were really done: those of the model, and what checkpointed layers computed again.
    """

    flops: int = 0
    tokens: int = 0
    positions: int = 0
    seconds: float = 0.0
    hardware_flops: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def __sub__(self, other: "Totals") -> "Totals":
        return Totals(*(a - b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def rates(self, steps: int, peak: float | None) -> dict[str, float]:
        """What was done a second, and the shares of the peak that it came to.

        Args:
            steps: optimizer steps of the stretch.
            peak: FLOP/s of all devices together; None, where it is not known, gives no shares.

        Returns:
            Positions, tokens and FLOPs a second, seconds a step; ``mfu``, model-FLOPs utilisation, and where more was done
            than the model's own work ``hfu``, hardware-FLOPs utilisation.
        """
        rates = {
            "positions_per_second": self.positions / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "flops_per_second": self.flops / self.seconds,
            "step_seconds": self.seconds / steps,
        }
        if peak is not None:
            rates["mfu"] = self.flops / self.seconds / peak
            if self.hardware_flops != self.flops:
                rates["hfu"] = self.hardware_flops / self.seconds / peak
        return rates
