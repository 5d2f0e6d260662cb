"""`tst generate`: transformers' own generation, the same from a checkpoint and from its export; and every refusal."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tests.conftest import SEQ_LEN
from tst_lightning.__main__ import main
from tst_lightning.export.opened import open_model

PROMPT = "def "


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "tiny"
    assert main(["export", str(last(tiny_run)), "--out", str(out)]) == 0
    return out


@pytest.fixture
def generate(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs the command; gives what it printed on standard output, and on standard error."""

    def run(model: Path, *options: str, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        assert main(["generate", str(model), *options]) == code
        captured = capfd.readouterr()
        return captured.out, captured.err

    return run


@pytest.fixture
def refused(generate: Callable[..., tuple[str, str]]) -> Callable[..., str]:
    """Expects a refusal, and gives its one line."""

    def run(model: Path, *options: str, code: int = 2) -> str:
        out, err = generate(model, *options, code=code)
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err

    return run


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def ids_of(folder: Path, prompt: str, **options: Any) -> tuple[Any, list[int]]:
    """The tokenizer, and the ids that transformers alone generates from a folder, the prompt's included."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder)
    return tokenizer, lm.generate(**tokenizer(prompt, return_tensors="pt"), **options)[0].tolist()


def test_a_checkpoint_and_its_export_say_the_same(
    tiny_run: Path, exported: Path, generate: Callable[..., tuple[str, str]]
) -> None:
    tokenizer, ids = ids_of(exported, PROMPT, max_new_tokens=8, do_sample=False)
    for model in (last(tiny_run), exported):
        assert generate(model, "--prompt", PROMPT, "--max_new_tokens", "8") == (tokenizer.decode(ids) + "\n", "")
    models = [open_model(path, None, torch.float32) for path in (last(tiny_run), exported)]
    rows = torch.arange(64).view(4, 16)
    logits = [opened.lm(rows).logits for opened in models]
    assert torch.equal(*logits)
    drawn = []
    for opened in models:
        torch.manual_seed(5)
        drawn.append(
            opened.lm.generate(rows[:, :4], attention_mask=torch.ones(4, 4), do_sample=True, max_new_tokens=12)
        )
    assert torch.equal(*drawn)


def test_the_plain_pipeline_says_it_too(exported: Path, generate: Callable[..., tuple[str, str]]) -> None:
    text = pipeline("text-generation", str(exported))(PROMPT, max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert generate(exported, "--prompt", PROMPT, "--max_new_tokens", "8")[0] == text + "\n"


def test_draws_follow_the_seed(tiny_run: Path, exported: Path, generate: Callable[..., tuple[str, str]]) -> None:
    options = ["--prompt", PROMPT, "--temperature", "0.9", "--top_k", "50", "--top_p", "0.95", "--max_new_tokens", "12"]
    first, said = generate(exported, *options)
    seed = said.removeprefix("seed: ").strip()
    assert generate(last(tiny_run), *options, "--seed", seed) == (first, said)
    assert len({generate(exported, *options, "--seed", str(seed))[0] for seed in range(4)}) > 1
    torch.manual_seed(7)
    tokenizer, ids = ids_of(exported, PROMPT, do_sample=True, temperature=0.9, top_k=50, top_p=0.95, max_new_tokens=12)
    assert generate(exported, *options, "--seed", "7")[0] == tokenizer.decode(ids, skip_special_tokens=True) + "\n"
    # Nothing is left out of the draw unless asked: transformers' own default is the 50 likeliest.
    torch.manual_seed(7)
    tokenizer, ids = ids_of(exported, PROMPT, do_sample=True, temperature=9.0, top_k=0, max_new_tokens=12)
    hot = generate(exported, "--prompt", PROMPT, "--temperature", "9", "--seed", "7", "--max_new_tokens", "12")[0]
    assert hot == tokenizer.decode(ids, skip_special_tokens=True) + "\n"


def test_where_it_stops(
    exported: Path, tmp_path: Path, generate: Callable[..., tuple[str, str]], refused: Callable[..., str]
) -> None:
    tokenizer, ids = ids_of(exported, PROMPT, max_new_tokens=8, do_sample=False)
    start = len(tokenizer(PROMPT).input_ids)
    # Text that was not there one token earlier, the prompt's last token in it: a small model may repeat that one.
    ends = range(start + 1, len(ids))
    end = next(n for n in ends if tokenizer.decode(ids[start - 1 : n]) not in tokenizer.decode(ids[: n - 1]))
    stop = tokenizer.decode(ids[start - 1 : end])
    assert generate(exported, "--prompt", PROMPT, "--stop", "never", stop)[0] == tokenizer.decode(ids[:end]) + "\n"

    room = SEQ_LEN + 1 - start
    text, said = generate(exported, "--prompt", PROMPT, "--max_new_tokens", "1000")
    assert said == f"note: stopped after {room} tokens, at the end of the model's {SEQ_LEN} positions\n"
    assert len(tokenizer(text.removesuffix("\n")).input_ids) <= SEQ_LEN + 1
    assert f"the prompt has 20 tokens, the model {SEQ_LEN} positions" in refused(exported, "--prompt", "\x01" * 20)

    # A model to which the first token generated is the end of a document; a folder's own manner of sampling is not used.
    ends = tmp_path / "ends"
    shutil.copytree(exported, ends)
    path = ends / "generation_config.json"
    content = json.loads(path.read_text()) | {"eos_token_id": [0, ids[start]], "do_sample": True, "temperature": 5.0}
    path.write_text(json.dumps(content))
    assert generate(ends, "--prompt", PROMPT) == (tokenizer.decode(ids[: start + 1]) + "\n", "")


def test_prompts_as_they_are_given(
    exported: Path, generate: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\n".encode())))
    out = generate(exported, "--max_new_tokens", "1", "--prompt", "5", "-", "null", "")[0]
    texts = []
    for prompt in ("5", "é\n", "null"):
        tokenizer, ids = ids_of(exported, prompt, max_new_tokens=1, do_sample=False)
        texts.append(tokenizer.decode(ids, skip_special_tokens=True))
    assert out.startswith("\n\n".join(texts) + "\n\n")
    # After an empty prompt comes what follows the end of a document.
    tokenizer, ids = ids_of(exported, "<|endoftext|>", max_new_tokens=1, do_sample=False)
    assert ids[0] == 0 and out.endswith("\n\n" + tokenizer.decode(ids, skip_special_tokens=True) + "\n")


def test_a_model_of_bags_is_not_sampled(
    tiny_run: Path, tmp_path: Path, generate: Callable[..., tuple[str, str]], refused: Callable[..., str]
) -> None:
    checkpoint = tiny_run / "checkpoints" / "switch-recovery-step=10.ckpt"
    said = refused(checkpoint, "--prompt", PROMPT)
    assert "from phase 'superposition', in which positions read and predict bags of 4 tokens" in said
    assert "it is of step 10 of 20, and 10 steps on single tokens are to come" in said
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    assert "note: its model card warns: the checkpoint is from phase" in generate(tmp_path / "out", "--prompt", "a")[1]


def test_a_model_of_several_targets_is_sampled_with_a_warning(
    fit: Callable[..., tuple[int, str]], tmp_path: Path, generate: Callable[..., tuple[str, str]]
) -> None:
    phase = {"class_path": "tst_lightning.phases.OutputOnlyPhase", "init_args": {"bag_size": 4}}
    assert fit(model__phases={"several": phase}, trainer__max_steps=4, trainer__val_check_interval=4)[0] == 0
    said = generate(last(tmp_path / "run"), "--prompt", "a", "--max_new_tokens", "1")[1]
    assert (
        "note: the checkpoint is from phase 'several', in which a position reads one token and predicts the next 4"
        in said
    )


def test_logits_that_are_not_finite(generate: Callable[..., tuple[str, str]], exported: Path) -> None:
    _, err = generate(exported, "--prompt", "a", "--temperature", "1e-45", code=1)
    assert "error: no token can be drawn" in err and "Traceback" not in err


def test_what_can_not_be_used(refused: Callable[..., str], exported: Path, tiny_run: Path, tmp_path: Path) -> None:
    assert "there is no checkpoint at" in refused(tmp_path / "none", "--prompt", "a")
    assert "is a run's folder; name one of its checkpoints" in refused(tiny_run, "--prompt", "a")
    assert "there is no tokenizer at 'nowhere'" in refused(last(tiny_run), "--prompt", "a", "--tokenizer", "nowhere")
    assert "--device 'meta' can't be used here (" in refused(exported, "--prompt", "a", "--device", "meta")
    assert "text needs a tokenizer" in refused(exported, "--prompt", "a", "--tokenizer", "none")
    folder = tmp_path / "folder"
    shutil.copytree(exported, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no tokenizer that can be loaded (" in refused(folder, "--prompt", "a")
    config = json.loads((folder / "config.json").read_text())
    more = config | {"num_hidden_layers": config["num_hidden_layers"] + 1}
    (folder / "config.json").write_text(json.dumps(more))
    assert "is missing, and 8 more of that kind" in refused(folder, "--prompt", "a")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    assert "code that a folder brings is not run" in refused(folder, "--prompt", "a")
    assert not (tmp_path / "ran").exists()
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "someone/attention"}))
    assert "names attention code of a hub (someone/attention)" in refused(folder, "--prompt", "a")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refused(folder, "--prompt", "a")
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "can't be loaded as a causal language model (" in refused(folder, "--prompt", "a", code=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--prompt is not given"),
        (["--prompt", "-", "-"], "more than once"),
        (["--prompt", "a\udcff"], "the prompt is no UTF-8 text"),
        (["--prompt", "a", "--max_new_tokens", "0"], "--max_new_tokens is 0"),
        (["--prompt", "a", "--stop", ""], "--stop has an empty text"),
        (["--prompt", "a", "--temperature", "0"], "--temperature is 0.0; it must be above 0"),
        (["--prompt", "a", "--temperature", "nan"], "temperature: expected float, got nan"),
        (["--prompt", "a", "--top_k", "0"], "--top_k is 0"),
        (["--prompt", "a", "--top_p", "1.5"], "--top_p is 1.5"),
        (["--prompt", "a", "--seed", "1"], "nothing is drawn"),
        (["--prompt", "a", "--top_k", "1", "--seed", "-1"], "--seed is -1"),
        (["--prompt", "a", "--device", "quantum"], "--device 'quantum' can't be used here"),
    ],
)
def test_options_that_are_wrong(refused: Callable[..., str], exported: Path, options: list[str], said: str) -> None:
    assert said in refused(exported, *options)


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from tst_lightning.__main__ import main\n"
        "try: main(['generate', '--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "assert main(['generate', 'x', '--prompt', 'a', '--top_k', '0']) == 2\n"
        "assert not {'lightning', 'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "DIR_OR_CKPT" in done.stdout and "--max_new_tokens" in done.stdout
