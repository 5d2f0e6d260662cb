"""The exported folder as an ONNX graph, made by torch: ONNX Runtime and OpenVINO generate the same tokens from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.deployment.conftest import POSITIONS, choose, greedy


class Logits(torch.nn.Module):
    """(1, L) ids to the logits of what follows, without a cache, whose form is each tool's own."""

    def __init__(self, lm: torch.nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="module", params=["dense", "moe"])
def graph(request: pytest.FixtureRequest, exported: Callable[[str], Path]) -> tuple[Path, Path]:
    """An exported folder, and its graph."""
    pytest.importorskip("onnxscript", reason="onnxscript, by which torch writes ONNX, is not installed (extra deploy)")
    folder = exported(request.param)
    # The default form of experts is an operator of transformers' own, which ONNX has not.
    experts = {"experts_implementation": "batched_mm"} if request.param == "moe" else {}
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **experts)
    path = folder.parent / "model.onnx"
    torch.onnx.export(
        Logits(lm).eval(),
        (torch.zeros(1, 7, dtype=torch.long),),
        path,
        input_names=["ids"],
        output_names=["logits"],
        dynamic_shapes={"ids": {1: torch.export.Dim("length", min=2, max=POSITIONS)}},
        dynamo=True,
    )
    return folder, path


def check_same(folder: Path, logits: Callable[[list[int]], Any]) -> None:
    tokenizer, expected = greedy(folder)
    for ids, continuation in expected.values():
        assert choose(logits, ids, tokenizer.eos_token_id) == continuation


def test_onnx_runtime(graph: tuple[Path, Path]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed (extra deploy)")
    folder, path = graph
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    check_same(folder, lambda ids: session.run(None, {"ids": torch.tensor([ids]).numpy()})[0][0, -1])


def test_openvino(graph: tuple[Path, Path]) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed (extra deploy)")
    folder, path = graph
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", exactly)
    check_same(folder, lambda ids: compiled({"ids": torch.tensor([ids]).numpy()})["logits"][0, -1])
