"""The one place that knows Hugging Face models: embeddings in, hidden states out, LM-head weight."""

from tst_lightning.modeling.causal_lm import CausalLM, build_causal_lm
from tst_lightning.modeling.layers import all_alike, compile_layers, decoder_layers
from tst_lightning.modeling.size import count_parameters

__all__ = ["CausalLM", "all_alike", "build_causal_lm", "compile_layers", "count_parameters", "decoder_layers"]
