"""Model FLOPs: counted on the meta device, checked against a closed form, and the peaks that MFU divides by.

One convention, for every arm of every comparison: matrix products of forward and backward (2 FLOPs a multiply-add),
attention as full rather than causal, no recomputation, no optimizer.
"""

from tst_lightning.flops.count import closed_form_flops_per_row, count_flops_per_row
from tst_lightning.flops.peaks import named_peak, peak_flops_per_second

CONVENTION = "forward and backward matrix products, attention counted as full, no recomputation, no optimizer"

__all__ = ["CONVENTION", "closed_form_flops_per_row", "count_flops_per_row", "named_peak", "peak_flops_per_second"]
