"""The one place that knows Hugging Face models: embeddings in, hidden states out, LM-head weight."""

from tst_lightning.modeling.causal_lm import CausalLM, build_causal_lm
from tst_lightning.modeling.size import count_parameters

__all__ = ["CausalLM", "build_causal_lm", "count_parameters"]
