"""Pretraining of language models with Token Superposition Training, on Lightning.

Kept free of imports so that ``tst --help`` and argument errors answer at once.
"""

__version__ = "0.1.0"
