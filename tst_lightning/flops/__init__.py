"""FLOPs: counted on the meta device, checked against a closed form, and the peaks that utilisation divides by.

One convention for every arm of every comparison: matrix products of forward and backward (2 FLOPs a multiply-add, a
backward twice a forward), no optimizer. Attention's two products are counted over all pairs of positions (``full``, the
custom of published figures) or over those that a causal mask leaves (``causal``): one switch, ``FlopsMeter.attention``.

Model FLOPs are of the model's own work; comparisons and MFU use them. Hardware FLOPs add what layers whose activations are
checkpointed compute again. What a fused kernel recomputes within itself is in neither.
"""

from tst_lightning.flops.attention import AttentionConvention
from tst_lightning.flops.count import RowFlops, closed_form_flops_per_row, count_flops_per_row, count_row
from tst_lightning.flops.peaks import named_peak, peak_flops_per_second


def convention(attention: AttentionConvention) -> str:
    """The convention of model FLOPs in words, as runs record it; runs whose words differ are not compared."""
    return f"forward and backward matrix products, attention counted as {attention}, no recomputation, no optimizer"


__all__ = [
    "AttentionConvention",
    "RowFlops",
    "closed_form_flops_per_row",
    "convention",
    "count_flops_per_row",
    "count_row",
    "named_peak",
    "peak_flops_per_second",
]
