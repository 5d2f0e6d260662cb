"""A second head for training alone: it looks one position further than the model's own, through the same LM head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExtraHead(nn.Module):
    """``h + silu(W h)`` (Medusa, arXiv 2401.10774, section 2.1), scored by the model's own LM head.

    W is zero at the start, so the head begins as the main one and no random number is drawn: the model's first weights
    are those that it has without. Gloeckle et al. (arXiv 2404.19737) and DeepSeek-V3 (arXiv 2412.19437) give a head a
    transformer layer of its own, which would tie it to an architecture. It is no part of the Hugging Face model, and left
    behind by the export.

    Args:
        lm_head: (V, d) weight; W is (d, d), of its device and dtype.
    """

    def __init__(self, lm_head: Tensor) -> None:
        super().__init__()
        width = lm_head.shape[1]
        self.weight = nn.Parameter(torch.zeros(width, width, device=lm_head.device, dtype=lm_head.dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) hidden states to those that predict what comes a position later; 2 d^2 FLOPs a position."""
        return hidden + F.silu(F.linear(hidden, self.weight))

    @torch.no_grad()
    def initialise(self, device: torch.device) -> None:
        """Gives a head on the meta device, sharded or not, its storage on another, and its first value."""
        self.to_empty(device=device)
        nn.init.zeros_(self.weight)
