"""The one place that knows Hugging Face models: embeddings in, hidden states out, LM-head weight."""

from tst_lightning.modeling.causal_lm import (
    CausalLM,
    build_causal_lm,
    build_on_meta,
    experts_a_position,
)
from tst_lightning.modeling.initialise import initialise, redraw_embeddings
from tst_lightning.modeling.layers import (
    ActivationCheckpointing,
    all_alike,
    checkpoint_activations,
    compile_layers,
    decoder_layers,
)
from tst_lightning.modeling.own_forward import check_trainable
from tst_lightning.modeling.pretrained import (
    check_same_tokenizer,
    check_whole,
    load_weights,
    read_config,
    weights_sha256,
)
from tst_lightning.modeling.size import Parameters, active_numbers, check_fits, count_parameters

__all__ = [
    "ActivationCheckpointing",
    "CausalLM",
    "Parameters",
    "active_numbers",
    "all_alike",
    "build_causal_lm",
    "build_on_meta",
    "check_fits",
    "check_same_tokenizer",
    "check_trainable",
    "check_whole",
    "checkpoint_activations",
    "compile_layers",
    "count_parameters",
    "decoder_layers",
    "experts_a_position",
    "initialise",
    "load_weights",
    "read_config",
    "redraw_embeddings",
    "weights_sha256",
]
