"""llama.cpp converts the exported folder by its own script and generates the same tokens."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deployment.conftest import NEW_TOKENS, POSITIONS, greedy

SOURCE = os.environ.get("LLAMA_CPP", "")


def convert(folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes GGUF. llama.cpp knows how text is cut by the hash of ids that a known tokenizer gives a sample; one trained
    on other text has other ids, so that it must be told: this one is cut as GPT-2's.
    """
    monkeypatch.syspath_prepend(SOURCE)
    from conversion.base import TextModel

    monkeypatch.setattr(TextModel, "get_vocab_base_pre", lambda self, tokenizer: "gpt-2")
    script = Path(SOURCE) / "convert_hf_to_gguf.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(folder), "--outtype", "f32", "--outfile", str(path)])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.skipif(not SOURCE, reason="LLAMA_CPP does not name llama.cpp's sources, where convert_hf_to_gguf.py is")
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_the_same_greedy_tokens(
    name: str, exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp's Python package is not installed (extra deploy)")
    tokenizer, expected = greedy(exported(name))
    convert(exported(name), tmp_path / "model.gguf", monkeypatch)
    options = xllamacpp.CommonParams()
    options.model.path = str(tmp_path / "model.gguf")
    options.n_ctx, options.n_parallel, options.n_gpu_layers = 2 * POSITIONS, 1, 0
    # Its threads wait for each other by spinning, which takes minutes where others use the cores too.
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.fit_params = options.warmup = options.ui = False
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(options)
    for prompt, (ids, continuation) in expected.items():
        asked = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0.0, "cache_prompt": False}
        found = server.handle_completions(asked)
        counts = found["usage"]
        assert (counts["prompt_tokens"], counts["completion_tokens"]) == (len(ids), len(continuation))
        assert found["choices"][0]["text"] == tokenizer.decode(continuation, skip_special_tokens=True)
