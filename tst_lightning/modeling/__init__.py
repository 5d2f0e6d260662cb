"""The one place that knows Hugging Face models: embeddings in, hidden states out, LM-head weight."""

from tst_lightning.modeling.causal_lm import CausalLM, build_causal_lm

__all__ = ["CausalLM", "build_causal_lm"]
