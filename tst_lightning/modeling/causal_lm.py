"""A Hugging Face causal LM, built from its config, seen through the four things that training needs of it.

Nothing of the model is replaced: the parameters are those of ``AutoModelForCausalLM.from_config``, by name, shape and
count, which is what keeps the export an ordinary model.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tst_lightning.bags import mean_embedding
from tst_lightning.errors import ConfigError
from tst_lightning.losses import LossSum
from tst_lightning.modeling.attention import NAME, attention_for

if TYPE_CHECKING:
    from tst_lightning.phases import PhaseStrategy

# Architectures with one of these set change their logits after the LM head; a loss taken from hidden states and head
# weight would silently differ from the model's own.
_LOGIT_TRANSFORMS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_MOST_LAYERS = 10_000  # more take minutes to build, before anything else can be found wrong


class CausalLM(nn.Module):
    """Embeddings, body and LM-head weight of a Hugging Face model, and the loss of a phase over them.

    The whole of a training step's tensor work happens inside :meth:`forward`, so that sharding wrappers see one root.

    Args:
        lm: the Hugging Face model; its parameters appear here under ``lm.``.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, tokens: Tensor, phase: "PhaseStrategy") -> LossSum:
        """The phase's loss on a batch of its rows.

        Args:
            tokens: (B, phase.row_tokens(L)) int64 ids.
            phase: what the rows mean and what is predicted.

        Returns:
            A part in nats for each row, and the count of positions.
        """
        hidden = phase.forward(self, tokens)
        return phase.loss(self, hidden, tokens)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, L) ids to (B, L, d), by the model's own embedding layer."""
        embedding = self.lm.get_input_embeddings()
        if type(embedding) is nn.Embedding and embedding.weight.dtype in (torch.bfloat16, torch.float16):
            return mean_embedding(
                tokens[..., None], embedding.weight
            )  # gradients add up in float32, as those of bags do
        return embedding(tokens)

    def embed_bags(self, bags: Tensor) -> Tensor:
        """(B, L, s) ids to the mean embedding of each bag, (B, L, d), accumulated in float32."""
        embedding = self.lm.get_input_embeddings()
        if type(embedding) is nn.Embedding:
            return mean_embedding(bags, embedding.weight)
        # The layer does more than look up (Gemma scales): let it, and average what it gives.
        embedded = embedding(bags)
        return embedded.mean(2, dtype=torch.float32).to(embedded.dtype)

    def body(self, inputs_embeds: Tensor) -> Tensor:
        """Runs the unmodified transformer: (B, L, d) embeddings to (B, L, d) hidden states after the final norm."""
        return self.lm.base_model(inputs_embeds=inputs_embeds, use_cache=False, return_dict=True).last_hidden_state

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


def check_trainable(config: PreTrainedConfig) -> None:
    """Checks that the loss of this version is all that the model is to be trained by.

    Apart from :func:`build_causal_lm`, so that a model that can't be trained yet can be sized, and its FLOPs counted.

    Args:
        config: of any model.

    Raises:
        ConfigError: it is to be trained by an auxiliary loss too.
    """
    if getattr(config, "router_aux_loss_coef", 0):
        raise ConfigError(
            f"{type(config).__name__} balances its experts by an auxiliary loss (router_aux_loss_coef="
            f"{config.router_aux_loss_coef}), which this version does not add: training would silently go without."
            " Choose a dense architecture, or set router_aux_loss_coef: 0 to train without balancing"
        )


def build_causal_lm(config: PreTrainedConfig, attention: str | None = None, experts: str | None = None) -> CausalLM:
    """Builds and initialises the model of a config, on the current default device, in float32.

    Args:
        config: any Hugging Face causal LM configuration whose body accepts ``inputs_embeds``; the model's own from then
            on, which notes the implementations in it.
        attention: implementation of attention by transformers' name; None chooses by :func:`attention_for`.
        experts: implementation of a mixture's experts by transformers' name; None leaves the choice to it.

    Returns:
        The model, in training mode.

    Raises:
        ConfigError: the config is of no causal LM, or of one whose loss can't be had from hidden states and head.
    """
    check_sizes(config)
    for key, neutral in _LOGIT_TRANSFORMS.items():
        value = getattr(config, key, neutral)
        if value not in (neutral, None):
            raise ConfigError(
                f"{type(config).__name__} has {key}={value}: it changes the logits after the LM head, which the losses"
                " of this version do not reproduce; choose another architecture"
            )
    heads, kv_heads = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if heads and kv_heads and heads % kv_heads:
        raise ConfigError(
            f"{type(config).__name__} has num_key_value_heads={kv_heads}, which does not divide num_attention_heads="
            f"{heads}; choose a divisor"
        )
    implementations = {"attn_implementation": attention or attention_for(config)}
    if experts is not None:
        implementations["experts_implementation"] = experts
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


def experts_a_position(config: PreTrainedConfig) -> int | None:
    """How many experts of a layer a position is sent to; None where there are none."""
    return getattr(config, "num_experts_per_tok", None)


def build_on_meta(config: PreTrainedConfig, attention: str = NAME) -> CausalLM:
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
        experts = "batched_mm" if experts_a_position(config) else None
        return build_causal_lm(copy.deepcopy(config), attention, experts)
