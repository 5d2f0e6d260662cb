"""vLLM serves the exported folder as it is and generates the same tokens; `vllm serve FOLDER` puts the same behind HTTP."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deployment.conftest import NEW_TOKENS, POSITIONS, PROMPTS, greedy


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_the_same_greedy_tokens(name: str, exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "vllm", reason="vLLM is not installed; it brings a torch of its own, so give it its own environment"
    )
    for key, value in {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(key, value)
    from vllm import LLM, SamplingParams

    _, expected = greedy(exported(name))
    engine = LLM(str(exported(name)), dtype="float32", max_model_len=POSITIONS, enforce_eager=True)
    found = engine.generate(list(PROMPTS), SamplingParams(temperature=0, max_tokens=NEW_TOKENS))
    for prompt, output in zip(PROMPTS, found, strict=True):
        ids, continuation = expected[prompt]
        assert output.prompt_token_ids == ids
        assert list(output.outputs[0].token_ids) == continuation
