"""A Hugging Face causal LM, built from its config, seen through the four things that training needs of it.

Nothing of the model is replaced: the parameters are those of ``AutoModelForCausalLM.from_config``, by name, shape and
count, which is what keeps the export an ordinary model.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tst_lightning.bags import mean_embedding, mean_of_present
from tst_lightning.errors import ConfigError
from tst_lightning.fused_cross_entropy import product_dtype
from tst_lightning.losses import IGNORED, LossSum
from tst_lightning.modeling import experts as grouped
from tst_lightning.modeling.attention import SHAPE_NAME, attention_for, document_mask
from tst_lightning.modeling.extra_head import ExtraHead
from tst_lightning.modeling.logits import LogitTransform
from tst_lightning.modeling.routers import Routers

if TYPE_CHECKING:
    from tst_lightning.phases import PhaseStrategy

# Architectures that scale embeddings only where they look them up themselves, and the factor's name; others scale in the
# embedding layer, or whatever embeddings they are given.
_SCALED_WITH_IDS = {"falcon_h1": "embedding_multiplier"}

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MOST_LAYERS = 10_000  # more take minutes to build, before anything else can be found wrong


class CausalLM(nn.Module):
    """Embeddings, body and LM-head weight of a Hugging Face model, and the loss of a phase over them.

    The whole of a training step's tensor work happens inside :meth:`forward`, so that sharding wrappers see one root.

    Args:
        lm: the Hugging Face model; its parameters appear here under ``lm.``.

    Attributes:
        routers: of a mixture of experts; None of a dense model.
        logit_transform: what the architecture does to its logits.
        compiled: whether losses are to compile their arithmetic, where that wins something.
        extra_head: beside the Hugging Face model, for training alone; None unless :meth:`equip` gave it.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm
        self.routers = Routers.of(lm)
        self.logit_transform = LogitTransform.of(lm.config)
        self.compiled = False
        self.extra_head: ExtraHead | None = None

    def equip(self, phases: Iterable["PhaseStrategy"]) -> None:
        """Gives the model what some of the phases ask for beside it; before it is sharded, or its values are given."""
        if any(phase.uses_extra_head for phase in phases):
            self.extra_head = ExtraHead(self.head)

    def forward(self, tokens: Tensor, phase: "PhaseStrategy") -> LossSum:
        """The phase's loss on a batch of its rows.

        In training, a mixture of experts is also trained to use them evenly: as in the architecture's own forward, the mean
        loss grows by its coefficient times its measure of balance. Of several micro-batches or ranks each has a measure of
        its own, and they are averaged, as the rest of the loss is.

        Args:
            tokens: (B, phase.row_tokens(L)) int64 ids.
            phase: what the rows mean and what is predicted.

        Returns:
            A part in nats for each row, and the count of positions.
        """
        if self.routers is None or not self.training:
            loss = phase.loss(self, phase.forward(self, tokens), tokens)
        else:
            with self.routers.listening():
                hidden = phase.forward(self, tokens)
            coefficient = balance_coefficient(self.lm.config)
            loss = phase.loss(self, hidden, tokens).balanced(self.routers.balance(), coefficient)
        if self.extra_head is None or phase.uses_extra_head:
            return loss
        # Of nothing: its gradient is zero then, rather than absent, which DDP would wait for.
        return replace(loss, total=loss.total + self.extra_head.weight[:0].sum())

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, L) ids to (B, L, d), by the model's own embedding layer."""
        embedding = self.lm.get_input_embeddings()
        if type(embedding) is nn.Embedding and embedding.weight.dtype in (torch.bfloat16, torch.float16):
            # Gradients add up in float32, as those of bags do.
            return self._scaled(mean_embedding(tokens[..., None], embedding.weight, embedding.padding_idx))
        return self._scaled(embedding(tokens))

    def embed_bags(self, bags: Tensor) -> Tensor:
        """(B, L, s) ids to the mean embedding of each bag, (B, L, d), accumulated in float32."""
        embedding = self.lm.get_input_embeddings()
        if type(embedding) is nn.Embedding:
            return self._scaled(mean_embedding(bags, embedding.weight, embedding.padding_idx))
        # The layer does more than look up (Gemma scales): let it, and average what it gives.
        embedded = embedding(bags)
        return self._scaled(embedded.mean(2, dtype=torch.float32).to(embedded.dtype))

    def embed_partial_bags(self, bags: Tensor) -> Tensor:
        """:meth:`embed_bags` where tokens are missing: (B, L, s) ids, ``IGNORED`` there, never in a bag's first place."""
        embedding = self.lm.get_input_embeddings()
        if type(embedding) is nn.Embedding:
            return self._scaled(mean_of_present(bags, embedding.weight, embedding.padding_idx))
        present = bags != IGNORED
        embedded = embedding(bags.where(present, bags[..., :1]))
        total = (embedded * present[..., None]).sum(2, dtype=torch.promote_types(embedded.dtype, torch.float32))
        return self._scaled((total / present.sum(2, keepdim=True)).to(embedded.dtype))

    def _scaled(self, embedded: Tensor) -> Tensor:
        name = _SCALED_WITH_IDS.get(self.lm.config.model_type)
        return embedded if name is None else embedded * getattr(self.lm.config, name)

    def body(self, inputs_embeds: Tensor, documents: Tensor | None = None) -> Tensor:
        """Runs the unmodified transformer: (B, L, d) embeddings to (B, L, d) hidden states after the final norm.

        Where the architecture scales its logits, the hidden states are scaled, to the same effect.

        Args:
            inputs_embeds: (B, L, d).
            documents: (B, L) ids of the positions' documents, for attention within them alone, by an architecture that
                :func:`~tst_lightning.modeling.documents.check_masks_documents` has passed; None attends to all earlier
                positions.
        """
        # By the way of arguments: what layers found elsewhere would be gone when they are recomputed.
        masks = {} if documents is None else {"document_mask": document_mask(documents, product_dtype(inputs_embeds))}
        results = self.lm.base_model(inputs_embeds=inputs_embeds, use_cache=False, return_dict=True, **masks)
        hidden = results.last_hidden_state
        scale = self.logit_transform.scale
        return hidden if scale == 1 else hidden * scale

    @property
    def softcap(self) -> float | None:
        """Bound of the logits, for the losses; None where there is none."""
        return self.logit_transform.softcap

    @property
    def embeddings(self) -> list[nn.Parameter]:
        """Weights that look something up, or score ids: every embedding's, and the LM head's."""
        tables = [module.weight for module in self.lm.modules() if isinstance(module, nn.Embedding)]
        return [*tables, self.lm.get_output_embeddings().weight]

    @property
    def head(self) -> Tensor:
        """(V, d) LM-head weight; the embedding matrix itself where the two are tied."""
        return self.lm.get_output_embeddings().weight


def check_sizes(config: PreTrainedConfig) -> None:
    """Checks what torch would take for an empty model, or build for hours.

    Args:
        config: of any model.

    Raises:
        ConfigError: a size below 1, or too many layers.
    """
    for key in _SIZES:
        size = getattr(config, key, None)
        most = _MOST_LAYERS if key == "num_hidden_layers" else 2**63 - 1
        if isinstance(size, int) and not 1 <= size <= most:
            raise ConfigError(f"model.config.init_args.{key} is {size}; it must be at least 1 and at most {most:,}")


def balance_coefficient(config: PreTrainedConfig) -> float:
    """By how much a mixture's measure of balance counts in its loss, ``router_aux_loss_coef``; 0 of a dense model."""
    return getattr(config, "router_aux_loss_coef", None) or 0.0


def build_causal_lm(config: PreTrainedConfig, attention: str | None = None, experts: str | None = None) -> CausalLM:
    """Builds and initialises the model of a config, on the current default device, in float32.

    Args:
        config: any Hugging Face causal LM configuration whose body accepts ``inputs_embeds``; the model's own from then
            on, which notes the implementations in it.
        attention: implementation of attention by transformers' name; None chooses by :func:`attention_for`.
        experts: implementation of a mixture's experts by transformers' name; None takes grouped products
            (:mod:`tst_lightning.modeling.experts`) where the architecture has a choice.

    Returns:
        The model, in training mode.

    Raises:
        ConfigError: the config is of no causal LM, or of one whose loss can't be had from hidden states and head.
    """
    check_sizes(config)
    heads, kv_heads = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if heads and kv_heads and heads % kv_heads:
        raise ConfigError(
            f"{type(config).__name__} has num_key_value_heads={kv_heads}, which does not divide num_attention_heads="
            f"{heads}; choose a divisor"
        )
    implementations = {
        "attn_implementation": attention or attention_for(config),
        "experts_implementation": experts or grouped.NAME,
    }
    try:
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **implementations)
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate" in str(error):  # nothing is wrong with the values
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"no causal language model can be built from {type(config).__name__} ({reason})") from error
    if getattr(lm.get_output_embeddings(), "bias", None) is not None:
        raise ConfigError(f"{type(lm).__name__} has a bias on its LM head, which the losses do not reproduce")
    return CausalLM(lm.train())


@contextmanager
def running(config: PreTrainedConfig) -> Iterator[None]:
    """For runs of a model that a user's values may not allow.

    Raises:
        ConfigError: in place of whatever transformers or torch raise.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"the model of {type(config).__name__} can't run with its values ({reason})") from error


def experts_a_position(config: PreTrainedConfig) -> int | None:
    """How many experts of a layer a position is sent to; None where there are none."""
    return getattr(config, "num_experts_per_tok", None)


def build_on_meta(config: PreTrainedConfig, attention: str = SHAPE_NAME) -> CausalLM:
    """The model of a config on the meta device: shapes to look at or to run, and nothing allocated.

    Of experts it multiplies those that a position is sent to, as a trained model's do. The other implementations can't run
    there, or not in float32. This one holds a copy of an expert's weights for each position: what it saves for the
    backward is not what training saves.

    Args:
        config: as for :func:`build_causal_lm`; left as it is.
        attention: as there; transformers' masks can't be built on this device.

    Raises:
        ConfigError: as :func:`build_causal_lm`.
    """
    with torch.device("meta"):
        return build_causal_lm(copy.deepcopy(config), attention, experts="batched_mm")
