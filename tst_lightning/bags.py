"""Bags: runs of contiguous tokens that share one position of the transformer.

Shapes: B rows, L positions, s tokens a bag, d residual width, V vocabulary.
Source of the method: arXiv 2605.06546, section 3 (the same mechanism as arXiv 2407.12665).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tst_lightning.fused_cross_entropy import IGNORED


@dataclass(frozen=True)
class PowerLaw:
    """The weight constant + factor * i**exponent of the i-th token of a bag, i from 1, before normalisation.

    The token is i tokens after the last one that was read, and so this is the form that the mutual information of two
    tokens takes over their distance (`tst prepare --mutual_information` fits one).

    Args:
        constant: C0, what is left of the weight far away.
        factor: a, of the part that changes with the distance.
        exponent: k, below 0 where weights fall.
    """

    constant: float
    factor: float
    exponent: float

    def __call__(self, i: int) -> float:
        """The weight of token i.

        Raises:
            OverflowError: it is too large for a float.
        """
        return self.constant + self.factor * i**self.exponent


# The paper's fit of the mutual information of DCLM token pairs over their distance.
DCLM_FIT = PowerLaw(3.63, 1.35, -1.25)

# Weight of the i-th token of a bag (i from 1) before normalisation.
BAG_WEIGHTINGS: dict[str, Callable[[int], float]] = {
    "uniform": lambda i: 1.0,
    "power_law": PowerLaw(0.0, 1.0, -1.0),
    "fitted_power_law": DCLM_FIT,
    "exponential": lambda i: math.exp(-i),
    "first": lambda i: float(i == 1),
}


def fold(tokens: Tensor, bag_size: int) -> Tensor:
    """Cuts rows of tokens into bags that never overlap.

    Args:
        tokens: (B, n * s) ids.
        bag_size: s.

    Returns:
        (B, n, s), a view: bag j of a row holds its tokens j * s to j * s + s - 1.

    Raises:
        ValueError: the row is not a whole number of bags.
    """
    rows, length = tokens.shape
    if length % bag_size:
        raise ValueError(f"a row of {length} tokens is not a whole number of bags of {bag_size}")
    return tokens.view(rows, length // bag_size, bag_size)


def inputs_and_targets(tokens: Tensor, bag_size: int) -> tuple[Tensor, Tensor]:
    """Pairs every bag with the bag after it, so that no position sees a token that it is scored on.

    Args:
        tokens: (B, s * (L + 1)) ids; the last bag of a row is only a target.
        bag_size: s.

    Returns:
        Input bags (B, L, s) and target bags (B, L, s); position j reads bags 0 to j and predicts bag j + 1.

    Raises:
        ValueError: the row is not a whole number of bags.
    """
    bags = fold(tokens, bag_size)
    return bags[:, :-1], bags[:, 1:]


def pad_documents(tokens: Tensor, bag_size: int, end_of_document_id: int | None) -> Tensor:
    """Fills every document up to a whole number of bags, so that :func:`fold` lays no bag over a border.

    A bag begins at a document's first token and after every s of its tokens; the rest of the last one is missing. What
    this pushes out of the row is left out: s - n mod s places for a document of n tokens, 0 where s divides it, so on
    average (s - 1) / 2 tokens a border. The row's beginning counts as a document's. All on the device, without its host.

    Args:
        tokens: (B, T) ids, T a multiple of s.
        bag_size: s.
        end_of_document_id: the last token of every document; None where there are no borders.

    Returns:
        (B, T) ids in their order, with ``IGNORED`` in missing places.
    """
    if end_of_document_id is None:
        return tokens
    place = torch.arange(tokens.shape[1], device=tokens.device)
    ends = tokens == end_of_document_id
    begins = (F.pad(ends, (1, 0))[:, :-1] * place).cummax(1).values
    missing = ends * ((begins - place - 1) % bag_size)
    place = place + F.pad(missing.cumsum(1), (1, 0))[:, :-1]
    padded = F.pad(torch.full_like(tokens, IGNORED), (0, 1))  # the place more takes what is left out
    return padded.scatter(1, place.clamp(max=tokens.shape[1]), tokens)[:, :-1]


def bag_weights(weighting: str | PowerLaw, bag_size: int) -> Tensor:
    """The share of the loss that each token of a target bag carries.

    Args:
        weighting: a key of :data:`BAG_WEIGHTINGS`, or a power law with constants of one's own.
        bag_size: s.

    Returns:
        (s,) float64, non-negative, summing to 1.

    Raises:
        ValueError: unknown weighting; or a power law that gives some token of the bag a negative weight or none that
            is finite, or all of them 0.
    """
    if not isinstance(weighting, PowerLaw) and weighting not in BAG_WEIGHTINGS:
        raise ValueError(
            f"unknown bag weighting '{weighting}'; choose one of {', '.join(BAG_WEIGHTINGS)}, or give the constants of a"
            " power law: {constant: C0, factor: a, exponent: k}"
        )
    weight_of = weighting if isinstance(weighting, PowerLaw) else BAG_WEIGHTINGS[weighting]
    try:
        weights = [float(weight_of(i)) for i in range(1, bag_size + 1)]
    except OverflowError:
        weights = [math.inf]
    total = sum(weights)
    if not math.isfinite(total) or min(weights) < 0 or total == 0:
        raise ValueError(
            f"weighting {weighting} does not give the {bag_size} tokens of a bag finite weights of 0 and more, and one"
            " above 0; change its constants"
        )
    return torch.tensor(weights, dtype=torch.float64) / total


def mean_embedding(bags: Tensor, weight: Tensor, untrained: int | None = None) -> Tensor:
    """Averages the embeddings of each bag's tokens, without a (B, L, s, d) tensor.

    ``embedding_bag`` accumulates in float32 inside and rounds once, but adds gradients up in the weight's dtype: half
    precision would lose most of those of frequent tokens, so it goes by a float32 copy, of (V, d).

    Args:
        bags: (B, L, s) ids.
        weight: (V, d) embedding matrix.
        untrained: the one id whose row gets no gradient, an embedding layer's ``padding_idx``.

    Returns:
        (B, L, d) in the weight's dtype, under autocast too, like an ordinary embedding.
    """
    rows, positions, bag_size = bags.shape
    wide = weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight
    flat = bags.reshape(-1, bag_size)
    if untrained is None:
        mean = F.embedding_bag(flat, wide, mode="mean")
    else:
        # embedding_bag would leave the row out of the mean, not out of its gradient alone.
        mean = F.embedding_bag(flat, wide, mode="sum", padding_idx=untrained) / bag_size
        mean = mean + (flat == untrained).sum(1, keepdim=True) / bag_size * wide[untrained].detach()
    return mean.to(weight.dtype).view(rows, positions, -1)


def mean_of_present(bags: Tensor, weight: Tensor, untrained: int | None = None) -> Tensor:
    """:func:`mean_embedding` of the tokens that are there, of bags that miss some; a multiplication a token more.

    Args:
        bags: (B, L, s) ids, ``IGNORED`` in missing places; the first place is never missing.
        weight: (V, d) embedding matrix.
        untrained: the one id whose row gets no gradient.

    Returns:
        (B, L, d) in the weight's dtype.
    """
    rows, positions, bag_size = bags.shape
    wide = weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight
    flat = bags.reshape(-1, bag_size)
    present = flat != IGNORED
    # A token of the bag itself stands in: one id for all would get a row's gradient from every missing place.
    flat = flat.where(present, flat[:, :1])
    shares = present / present.sum(1, keepdim=True, dtype=wide.dtype)
    trained = shares if untrained is None else shares * (flat != untrained)
    mean = F.embedding_bag(flat, wide, mode="sum", per_sample_weights=trained)
    if untrained is not None:
        mean = mean + (shares - trained).sum(1, keepdim=True) * wide[untrained].detach()
    return mean.to(weight.dtype).view(rows, positions, -1)
