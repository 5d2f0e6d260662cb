"""The mutual information of two tokens of a document, by how many tokens lie from the one to the other.

Estimated from counts of pairs, by the plug-in formula. That is biased upwards, by about half the number of possible
pairs over the number of counted ones, and most where the vocabulary is large. So the same estimate is made of the same
pairs with their second tokens permuted, which tell nothing about the first ones: what it finds there is bias, and is
taken off.

The correction is exact for independent tokens alone. Where tokens hang together it is off by the less, the more pairs
there are: on the quickstart's corpus of 1,024 ids a million of them give 0.33 nats at distance 8, 4 million 0.29 and 16
million 0.26. So many pairs are worth their time, and a large vocabulary needs more of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tst_lightning.errors import ConfigError, RunError
from tst_lightning.shards.manifest import HEADER_BYTES, Manifest

SEED = 0  # of the permutations: the same shards give the same numbers
_STRETCH_TOKENS = 1 << 13  # read in one piece, where not everything is read: of many documents, and few pairs are lost
_LARGEST_DISTANCE = 4_096  # an hour's work, and more than a bag holds

Ids = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Estimate:
    """The mutual information of tokens at one distance.

    Attributes:
        distance: i, tokens from the first of a pair to the second.
        pairs: counted, of N tokens at most N - i.
        plug_in: I(X_0; X_i) in nats, from the pairs' counts.
        shuffled: the same of the pairs with their second tokens permuted: the bias, in nats.
    """

    distance: int
    pairs: int
    plug_in: float
    shuffled: float

    @property
    def corrected(self) -> float:
        """The plug-in estimate less its bias, in nats."""
        return self.plug_in - self.shuffled


@dataclass(frozen=True)
class Measurement:
    """What was measured on the train split of a folder of shards.

    Attributes:
        tokens_read: of the split.
        tokens: of the split in all.
        estimates: by distance, from 1 up.
    """

    tokens_read: int
    tokens: int
    estimates: list[Estimate]


def measure(manifest: Manifest, largest_distance: int, most_pairs: int) -> Measurement:
    """Measures I(X_0; X_i) on the train split, for i from 1 up.

    Pairs lie within one document, and what ends it belongs to none. Nor are there pairs from one chunk to the next.
    Takes 20 to 40 bytes of memory for each token that is read, whatever the vocabulary, and two sorts of as many numbers
    for each distance.

    Args:
        manifest: of finished shards on this machine, as read from their folder.
        largest_distance: i goes up to it, in tokens.
        most_pairs: pairs counted at each distance at most; of a larger split so many tokens are read, in stretches
            spread evenly over it.

    Raises:
        ConfigError: a distance or a number of pairs that makes no sense, or documents that are shorter than that.
        RunError: a chunk is not what was written.
        OSError: a chunk can't be read.
    """
    if not 4 <= largest_distance <= _LARGEST_DISTANCE:
        raise ConfigError(
            f"--largest_distance {largest_distance} must be at least 4, or there is nothing to fit, and at most"
            f" {_LARGEST_DISTANCE:,}"
        )
    if most_pairs < 1:
        raise ConfigError(
            f"--most_pairs {most_pairs} must be at least 1; some millions are needed for a small vocabulary"
        )
    stretches = list(_read(manifest, most_pairs))
    tokens = np.concatenate(stretches)
    following = np.concatenate([_following(stretch, manifest.end_of_document_id) for stretch in stretches])
    del stretches
    if following.max() < largest_distance:
        raise ConfigError(
            f"no document has two tokens {largest_distance} apart among the {len(tokens):,} tokens of the train split that"
            f" were read; the farthest are {max(following.max(), 0)}: lower --largest_distance, or raise --most_pairs"
        )
    estimates = []
    for distance in tqdm(range(1, largest_distance + 1), desc="mutual information", unit=" distances", disable=None):
        paired = following[:-distance] >= distance
        first, second = tokens[:-distance][paired], tokens[distance:][paired]
        estimates.append(_estimate(distance, first, second, manifest.vocab_size))
    return Measurement(len(tokens), manifest.train.tokens, estimates)


def mutual_information(first: Ids, second: Ids, vocab_size: int) -> float:
    """The plug-in estimate of the mutual information of two tokens, in nats, from N pairs of them.

    sum over pairs (x, y) of p(x, y) log(p(x, y) / (p(x) p(y))), with p the shares in these N pairs.

    Args:
        first: (N,) ids of the pairs' first tokens.
        second: (N,) of their second ones.
        vocab_size: V; the ids are below it.
    """
    # One number a pair, of 4 bytes where that is enough: sorted, equal pairs lie side by side. Never V x V counts.
    pairs: NDArray[Any] = first.astype(np.uint32 if vocab_size <= 1 << 16 else np.uint64)
    pairs *= pairs.dtype.type(vocab_size)
    pairs += second
    pairs.sort()
    ends = np.flatnonzero(pairs[1:] != pairs[:-1])
    joint = np.diff(ends, prepend=-1, append=len(pairs) - 1)
    del pairs, ends
    total = len(first)
    of_first, of_second = (np.bincount(ids, minlength=vocab_size) for ids in (first, second))
    return float(np.log(total) + (_sum_of_logs(joint) - _sum_of_logs(of_first) - _sum_of_logs(of_second)) / total)


def _estimate(distance: int, first: Ids, second: Ids, vocab_size: int) -> Estimate:
    plug_in = mutual_information(first, second, vocab_size)
    np.random.default_rng([SEED, distance]).shuffle(second)
    return Estimate(distance, len(first), plug_in, mutual_information(first, second, vocab_size))


def _sum_of_logs(counts: NDArray[np.integer]) -> float:
    """The sum of c log c, which is 0 for a c of 0."""
    counts = counts[counts > 1]
    return float(np.dot(counts, np.log(counts)))


def _following(stretch: Ids, end_of_document_id: int) -> NDArray[np.int32]:
    """How many tokens follow each one in its document, as far as it is read; -1 for what ends a document."""
    ends = np.append(np.flatnonzero(stretch == end_of_document_id), len(stretch))
    here = np.arange(len(stretch), dtype=np.int32)
    return np.repeat(ends, np.diff(ends, prepend=-1))[: len(stretch)].astype(np.int32) - here - 1


def _read(manifest: Manifest, most_tokens: int) -> Iterator[Ids]:
    """The ids of the train split, a piece that is contiguous at a time: chunks, or stretches of them if it is larger."""
    assert manifest.folder is not None, "only a manifest that was read knows its folder"
    dtype = np.dtype(manifest.dtype)
    for name, begin, count in _stretches(manifest, most_tokens):
        path = Path(manifest.folder, "train", name)
        # A negative id is a very large one.
        ids = np.fromfile(path, dtype, count, offset=HEADER_BYTES + begin * dtype.itemsize).view(f"u{dtype.itemsize}")
        if len(ids) != count or ids.max() >= manifest.vocab_size:
            raise RunError(f"'{path}' is damaged: `tst prepare --verify {manifest.folder}` says where and what to do")
        yield ids


def _stretches(manifest: Manifest, most_tokens: int) -> Iterator[tuple[str, int, int]]:
    """What to read: a chunk's name, the first token, and how many."""
    total, length = manifest.train.tokens, min(_STRETCH_TOKENS, most_tokens)
    starts = [number * total // (most_tokens // length) for number in range(most_tokens // length)]
    offset = 0
    for chunk in manifest.train.chunks:
        if total <= most_tokens:
            yield chunk["filename"], 0, chunk["tokens"]
        for start in starts if total > most_tokens else []:
            if offset <= start < offset + chunk["tokens"]:
                yield chunk["filename"], start - offset, min(length, offset + chunk["tokens"] - start)
        offset += chunk["tokens"]
