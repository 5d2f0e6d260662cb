"""Quantities as people read them: three figures and a prefix (12.3 TFLOP, 4.10M tokens)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def scaled(value: float) -> tuple[str, str]:
    """Splits a non-negative number into three significant figures and an SI prefix: 12_340 is ("12.3", "k")."""
    power = 0
    # 999.5 rounds to four figures, so the next prefix starts there.
    while value >= 999.5 and power < len(PREFIXES) - 1:
        value /= 1000
        power += 1
    decimals = 0 if power == 0 and value == int(value) else 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}", PREFIXES[power]


def flops_text(flops: float) -> str:
    """Floating-point operations with their unit, such as "12.3 TFLOP"."""
    figures, prefix = scaled(flops)
    return f"{figures} {prefix}FLOP"


def tokens_text(tokens: float) -> str:
    """A count with its prefix and no unit, such as "4.10M"; thousands of millions are B, as is the custom of tokens."""
    figures, prefix = scaled(tokens)
    return figures + prefix.replace("G", "B")


def loss_text(loss: float | None) -> str:
    """A loss in nats to four decimals, or "-" where there is none."""
    return "-" if loss is None else f"{loss:.4f}"


def difference_text(difference: float | None) -> str:
    """A difference of losses in nats with its sign, or "-" where there is none; never "-0.0000"."""
    return "-" if difference is None else f"{round(difference, 4) + 0.0:+.4f}"


def speedup_text(speedup: float | None) -> str:
    """A ratio of FLOPs such as "1.31x", or "not reached"."""
    return "not reached" if speedup is None else f"{speedup:.2f}x"


def seconds_text(seconds: float) -> str:
    """Training seconds with their unit, such as "93.8 s"."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def mean_text(summary: Mapping[str, Any] | None) -> str:
    """A mean loss and its standard deviation over seeds, such as "3.3120 ± 0.0346"; "-" where there is none."""
    if summary is None or summary["mean"] is None:
        return "-"
    return loss_text(summary["mean"]) + ("" if summary["sd"] is None else f" ± {summary['sd']:.4f}")


def interval_text(interval: Sequence[float] | None, text: Callable[[float], str]) -> str:
    """A confidence interval, such as "[+0.1800, +0.4020]"; "" where there is none."""
    return "" if interval is None else f"[{', '.join(text(end) for end in interval)}]"
