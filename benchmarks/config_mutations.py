"""What a person, an editor or a bad copy can do to a configuration: keys, types, values, structure, raw text.

Every mutation draws from the random generator that it is given and from nothing else, so that a seed and a number name
a case for ever. Paths that are written to stay inside the working folder of the case.
"""

import copy
import datetime
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Tree = Any
Path = tuple[Any, ...]

NUMBERS = (
    *(0, 1, 2, 3, 7, 17, -1, -7, 0.5, 1.5, -0.0, 1e-300, 1e308, 1e39, float("nan"), float("inf"), -float("inf")),
    *(300, 100_000, 10**6, 10**9, 2**31, 2**31 - 1, 2**63, 2**64, 10**30, -(10**18), 10**400),
)
WORDS = (
    *("", " ", "abc", "7", "-3", "0x10", "1e3", "1_000", "null", "~", "yes", "nan", "3 # three", "a: b", "- 1", "[1"),
    *("auto", "cpu", "cuda", "step", "min", "last", "__init__", "class_path", "{}", "a\nb", "\t", "x" * 10_000, "\0"),
    *(
        "${run_dir}",
        "${nowhere}",
        "${",
        "$",
        "${oc.env:NOT_SET}",
        "${oc.env:}",
        "${nothing:1}",
        "${trainer}",
        "%s",
        "{step}",
    ),
    *("ünï cödé", "模型", "\U0001f999", "\u202e", "１２", "!!python/name:os.system"),
)
PATHS = (
    *(".", "/dev/null", "/dev/null/x", "/dev/full", "/proc/nothing/x", "/sys/x", "nowhere/at/all", "config.yaml"),
    *("config.yaml/x", "y" * 300, "z" * 100 + "/" + "z" * 5000, "with space", "per%cent", "a\0b", "~/x"),
)
OTHERS: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], [1, 2], ["a", "b"], {"a": 1}, {1: 2}, {None: None}, {"": ""}),
    *(
        {"class_path": "x"},
        {"class_path": None},
        {"class_path": "torch.nn.Linear"},
        {"init_args": {}},
        {"init_args": None},
    ),
    *(datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1, 12), b"\xff\xfe", [[[[[[1]]]]]], list(range(1000))),
)
CLASSES = (
    *("transformers.GPT2Config", "transformers.Qwen3Config", "transformers.MistralConfig", "transformers.BertConfig"),
    *("transformers.T5Config", "transformers.Gemma2Config", "transformers.Qwen3MoeConfig", "transformers.CLIPConfig"),
    *(
        "transformers.MambaConfig",
        "transformers.PreTrainedConfig",
        "transformers.LlamaModel",
        "transformers.LlamaConfg",
    ),
    *("torch.optim.SGD", "torch.optim.LBFGS", "torch.optim.SparseAdam", "torch.optim.Optimizer", "torch.optim.Muon"),
    *("torch.optim.lr_scheduler.StepLR", "torch.nn.Linear", "torch.Tensor", "torch.zeros", "torch", "lightning"),
    *("lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.callbacks.StochasticWeightAveraging"),
    *("lightning.pytorch.callbacks.BatchSizeFinder", "lightning.pytorch.callbacks.LearningRateFinder"),
    *("lightning.pytorch.callbacks.GradientAccumulationScheduler", "lightning.pytorch.callbacks.Timer"),
    *(
        "lightning.pytorch.callbacks.RichProgressBar",
        "lightning.pytorch.callbacks.Callback",
        "lightning.pytorch.Callback",
    ),
    *("lightning.pytorch.loggers.WandbLogger", "lightning.pytorch.loggers.MLFlowLogger", "lightning.pytorch.Trainer"),
    *("tst_lightning.phases.PhaseStrategy", "tst_lightning.phases.PhaseSchedule", "tst_lightning.module.CausalLM"),
    *("tst_lightning.phases.NextTokenPhase", "tst_lightning.phases.SuperpositionPhase", "tst_lightning.nowhere.X"),
    *(
        "builtins.dict",
        "builtins.object",
        "builtins.print",
        "builtins.int",
        "os.path",
        "nowhere.Class",
        "Class",
        "a..b",
    ),
    *(".", "", "__main__.X", "yaml", "transformers.", ".LlamaConfig", "torch.optim.AdamW.step", "json.JSONDecodeError"),
)

# -- the tree -----------------------------------------------------------------------------------------------------


def nodes(tree: Tree, path: Path = ()) -> Iterator[Path]:
    """Paths of all values below the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from nodes(value, (*path, key))


def get(tree: Tree, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _pick(
    rng: random.Random, tree: Tree, wanted: Callable[[Path, Any], bool] = lambda path, value: True
) -> Path | None:
    found = [path for path in nodes(tree) if wanted(path, get(tree, path))]
    return rng.choice(found) if found else None


def _put(tree: Tree, path: Path, value: Any) -> str:
    get(tree, path[:-1])[path[-1]] = value
    return f"{_dotted(path)} = {_shown(value)}"


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _shown(value: Any) -> str:
    shown = str(value) if isinstance(value, int) and value > 10**50 else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:40]}... ({len(shown):,} characters)"


def _rekey(tree: Tree, path: Path, name: Any) -> None:
    """Renames a key in its place."""
    parent = get(tree, path[:-1])
    items = [(name if key == path[-1] else key, value) for key, value in parent.items()]
    parent.clear()
    parent.update(items)


def _misspelt(rng: random.Random, word: str) -> str:
    if not word:
        return "x"
    at = rng.randrange(len(word))
    edits = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + rng.choice("aexz_-. ") + word[at + 1 :],
        word.upper(),
        word + "s",
        word.replace("_", "-"),
    )
    return rng.choice(edits)


# -- mutations of the tree: each changes it and says what it did, or gives None if there was nothing to change ------


def _is_key(path: Path, value: Any) -> bool:
    return isinstance(path[-1], str)


def misspell_key(rng: random.Random, tree: Tree) -> str | None:
    if (path := _pick(rng, tree, _is_key)) is None:
        return None
    name = _misspelt(rng, path[-1])
    _rekey(tree, path, name)
    return f"{_dotted(path)} misspelt {name!r}"


def rename_key(rng: random.Random, tree: Tree) -> str | None:
    if (path := _pick(rng, tree, _is_key)) is None:
        return None
    name = rng.choice([*WORDS, 7, None, True, 1.5])
    _rekey(tree, path, name)
    return f"{_dotted(path)} renamed {_shown(name)}"


def delete(rng: random.Random, tree: Tree) -> str | None:
    if (path := _pick(rng, tree)) is None:
        return None
    del get(tree, path[:-1])[path[-1]]
    return f"{_dotted(path)} deleted"


def move(rng: random.Random, tree: Tree) -> str | None:
    if (path := _pick(rng, tree, _is_key)) is None:
        return None
    value = get(tree, path[:-1]).pop(path[-1])
    target = _pick(rng, tree, lambda _, inner: isinstance(inner, dict)) or ()
    get(tree, target)[path[-1]] = value
    return f"{_dotted(path)} moved into {_dotted(target) or 'the root'}"


def copy_elsewhere(rng: random.Random, tree: Tree) -> str | None:
    source, target = _pick(rng, tree), _pick(rng, tree)
    if source is None or target is None:
        return None
    _put(tree, target, copy.deepcopy(get(tree, source)))
    return f"{_dotted(target)} = what {_dotted(source)} is"


def odd_value(rng: random.Random, tree: Tree) -> str | None:
    path = _pick(rng, tree)
    return None if path is None else _put(tree, path, copy.deepcopy(rng.choice([*NUMBERS, *WORDS, *OTHERS, *OTHERS])))


def _is_number(path: Path, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def odd_number(rng: random.Random, tree: Tree) -> str | None:
    """A number of the same type, so that it gets past the parser."""
    path = _pick(rng, tree, _is_number)
    if path is None:
        return None
    kind = float if isinstance(get(tree, path), float) else int
    return _put(tree, path, rng.choice([number for number in NUMBERS if kind is float or isinstance(number, int)]))


def flip(rng: random.Random, tree: Tree) -> str | None:
    path = _pick(rng, tree, lambda _, value: isinstance(value, bool))
    return None if path is None else _put(tree, path, not get(tree, path))


def other_value(rng: random.Random, tree: Tree) -> str | None:
    """Takes the value of another key with a value of the same type."""
    path = _pick(rng, tree, lambda _, value: isinstance(value, str | int | float))
    if path is None:
        return None
    same = [get(tree, where) for where in nodes(tree) if type(get(tree, where)) is type(get(tree, path))]
    return _put(tree, path, rng.choice(same))


def number_as_text(rng: random.Random, tree: Tree) -> str | None:
    path = _pick(rng, tree, _is_number)
    return None if path is None else _put(tree, path, rng.choice(["{}", "{} ", "{}px", "~{}"]).format(get(tree, path)))


def odd_path(rng: random.Random, tree: Tree) -> str | None:
    names = {"run_dir", "shards", "dirpath", "save_dir", "default_root_dir", "ckpt_path", "filename", "name"}
    path = _pick(rng, tree, lambda where, _: where[-1] in names)
    return None if path is None else _put(tree, path, rng.choice(PATHS))


def odd_class(rng: random.Random, tree: Tree) -> str | None:
    path = _pick(rng, tree, lambda where, _: where[-1] == "class_path")
    if path is None:
        return None
    known = [get(tree, where) for where in nodes(tree) if where[-1] == "class_path"]
    name = get(tree, path)
    misspelt = [_misspelt(rng, name)] * 8 if isinstance(name, str) else []
    said = _put(tree, path, rng.choice([*CLASSES, *known, *misspelt]))
    if rng.random() < 0.5:  # half of the time the old arguments would be the first thing refused
        get(tree, path[:-1]).pop("init_args", None)
        said += ", without init_args"
    return said


def wrap(rng: random.Random, tree: Tree) -> str | None:
    if (path := _pick(rng, tree)) is None:
        return None
    value = get(tree, path)
    shapes = {
        "a list": [value],
        "a mapping": {path[-1]: value},
        "init_args": {"init_args": value},
        "two": [value, value],
    }
    name = rng.choice(list(shapes))
    _put(tree, path, copy.deepcopy(shapes[name]))
    return f"{_dotted(path)} wrapped in {name}"


def flatten(rng: random.Random, tree: Tree) -> str | None:
    path = _pick(rng, tree, lambda _, value: isinstance(value, dict) and bool(value))
    if path is None:
        return None
    value = get(tree, path)
    shapes = {
        "its values": list(value.values()),
        "its keys": list(value),
        "pairs": [list(pair) for pair in value.items()],
        "one-key mappings": [{key: inner} for key, inner in value.items()],
        "its text": str(value),
    }
    name = rng.choice(list(shapes))
    _put(tree, path, shapes[name])
    return f"{_dotted(path)} flattened to {name}"


def spread(rng: random.Random, tree: Tree) -> str | None:
    """Puts what a mapping holds beside it."""
    path = _pick(rng, tree, lambda _, value: isinstance(value, dict) and bool(value))
    if path is None or not isinstance(parent := get(tree, path[:-1]), dict):
        return None
    parent.update(parent.pop(path[-1]))
    return f"{_dotted(path)} spread into its parent"


def dotted_key(rng: random.Random, tree: Tree) -> str | None:
    """Writes a nested value as one key at the root, as on the command line."""
    if (path := _pick(rng, tree, lambda where, _: len(where) > 1)) is None:
        return None
    tree[_dotted(path)] = get(tree, path[:-1]).pop(path[-1])
    return f"{_dotted(path)} as one dotted key"


TREE_MUTATIONS = (
    *(misspell_key, misspell_key, rename_key, delete, delete, move, copy_elsewhere, odd_value, odd_value, odd_value),
    *(odd_number, odd_number, odd_number, odd_number, odd_number, odd_number, number_as_text, flip, flip, other_value),
    *(other_value, odd_path, odd_path, odd_class, odd_class, wrap, flatten, spread, dotted_key),
)

# -- mutations of the text ------------------------------------------------------------------------------------------


def _line(rng: random.Random, lines: list[str]) -> int:
    return rng.randrange(len(lines))


def mutate_text(rng: random.Random, text: str) -> tuple[bytes, str]:
    """One mutation of a YAML's text, which may leave it no YAML at all.

    Returns:
        The bytes of the file, and what was done.
    """
    lines = text.splitlines()
    at = _line(rng, lines)
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    place = rng.randrange(len(text))
    edits: dict[str, Callable[[], str | bytes]] = {
        f"line {at} twice": lambda: "\n".join([*lines[: at + 1], *lines[at:]]),
        f"line {at} left out": lambda: "\n".join(lines[:at] + lines[at + 1 :]),
        f"line {at} indented": lambda: "\n".join([*lines[:at], " " + lines[at], *lines[at + 1 :]]),
        f"line {at} with a tab": lambda: "\n".join([*lines[:at], "\t" + lines[at], *lines[at + 1 :]]),
        f"line {at} without its colon": lambda: "\n".join([*lines[:at], lines[at].replace(":", ""), *lines[at + 1 :]]),
        f"line {at} without space after its colon": lambda: "\n".join(
            [*lines[:at], lines[at].replace(": ", ":"), *lines[at + 1 :]]
        ),
        f"cut at {place}": lambda: text[:place],
        f"stray character at {place}": lambda: text[:place] + rng.choice("[]{}\"':,&*!|>%@`#-?\\\r\x07") + text[place:],
        f"stray byte at {place}": lambda: (
            text[:place].encode() + bytes([rng.randrange(128, 256)]) + text[place:].encode()
        ),
        "random bytes": lambda: rng.randbytes(2000),
        "byte-order mark": lambda: b"\xef\xbb\xbf" + text.encode(),
        "utf-16": lambda: text.encode("utf-16"),
        "carriage returns": lambda: text.replace("\n", "\r\n"),
        "nothing": lambda: "",
        "a comment alone": lambda: "# nothing\n",
        "a scalar alone": lambda: "42\n",
        "two documents": lambda: f"{text}\n---\n{text}",
        "an end marker first": lambda: f"...\n{text}",
        "json": lambda: yaml.safe_dump(yaml.safe_load(text), default_flow_style=True),
        "an unknown anchor": lambda: "\n".join([*lines[:at], f"{indent}extra: *nowhere", *lines[at:]]),
        "an anchor of itself": lambda: "\n".join([*lines[:at], f"{indent}extra: &a [*a]", *lines[at:]]),
        "a mapping that holds itself": lambda: "\n".join([*lines[:at], f"{indent}extra: &a {{b: *a}}", *lines[at:]]),
        "a merge key": lambda: "\n".join([*lines[:at], f"{indent}<<: {{hidden_size: 8}}", *lines[at:]]),
        "a merge of no mapping": lambda: "\n".join([*lines[:at], f"{indent}<<: 3", *lines[at:]]),
        "aliases of aliases": lambda: "a: &a [1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + text,
        "a python tag": lambda: "\n".join([*lines[:at], f"{indent}extra: !!python/name:os.system", *lines[at:]]),
        "an unknown tag": lambda: "\n".join([*lines[:at], f"{indent}extra: !mine {{a: 1}}", *lines[at:]]),
        "a bad tagged value": lambda: "\n".join([*lines[:at], f"{indent}extra: !!float abc", *lines[at:]]),
        "a date that is none": lambda: "\n".join([*lines[:at], f"{indent}extra: 2026-99-99", *lines[at:]]),
        "a list as key": lambda: "\n".join([*lines[:at], f"{indent}? [a, b]\n{indent}: 1", *lines[at:]]),
        "deep nesting": lambda: f"{text}\nextra: {'[' * 3000}{']' * 3000}\n",
        "deep mappings": lambda: f"{text}\nextra: {'{a: ' * 300}1{'}' * 300}\n",
        "a long line": lambda: f"{text}\nextra: {'x' * 1_000_000}\n",
        "a thousand keys": lambda: text + "".join(f"\nkey_{number}: {number}" for number in range(1000)),
        "a directive": lambda: f"%YAML 9.9\n---\n{text}",
    }
    name = rng.choice(list(edits))
    edited = edits[name]()
    return (edited if isinstance(edited, bytes) else edited.encode("utf-8", "surrogatepass")), name


def mutate(rng: random.Random, config: Tree) -> tuple[bytes, list[str]]:
    """A mutated configuration: mostly one mutation, sometimes up to four, and of these the last one may be of the text.

    Args:
        rng: where all choices come from.
        config: left as it is.

    Returns:
        The bytes of the YAML file, and what was done, in order.
    """
    tree, done = copy.deepcopy(config), []
    count = rng.choice([1, 1, 1, 1, 1, 2, 2, 3, 4])
    of_text = rng.random() < 0.2
    while len(done) < count - of_text and tree:
        if said := rng.choice(TREE_MUTATIONS)(rng, tree):
            done.append(said)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    if not of_text:
        return text.encode("utf-8", "surrogatepass"), done
    content, said = mutate_text(rng, text)
    return content, [*done, said]
