"""CTranslate2 converts the exported folder and generates the same tokens; it knows no Qwen3-MoE."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deployment.conftest import NEW_TOKENS, greedy


def test_the_same_greedy_tokens(exported: Callable[[str], Path], tmp_path: Path) -> None:
    ctranslate2 = pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed (extra deploy)")
    tokenizer, expected = greedy(exported("dense"))
    ctranslate2.converters.TransformersConverter(str(exported("dense"))).convert(str(tmp_path / "converted"))
    generator = ctranslate2.Generator(str(tmp_path / "converted"), device="cpu", compute_type="float32")
    for ids, continuation in expected.values():
        (found,) = generator.generate_batch(
            [tokenizer.convert_ids_to_tokens(ids)],
            max_length=NEW_TOKENS,
            sampling_topk=1,
            end_token=tokenizer.eos_token,
            return_end_token=True,
            include_prompt_in_result=False,
        )
        assert found.sequences_ids[0] == continuation
