"""The shape of the package: what may import what, and that no test file is forgotten by the runner."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "tst_lightning"
FILES = sorted(PACKAGE.rglob("*.py"))

# Third-party package -> the only places that may import it.
KEPT_IN = {
    "litdata": {"data", "shards"},
    "transformers": {"modeling", "flops", "shards", "module.py", "plan", "export", "evaluation", "commands"},
    "lightning": {"module.py", "data", "callbacks", "commands", "checkpoint_io.py", "fully_sharded.py"},
    "lm_eval": {"evaluation", "commands"},
    "datasets": {"evaluation"},
    "matplotlib": {"compare", "mutual_information", "plan", "published", "sweep"},
    "optuna": {"sweep"},
    "scipy": {"compare"},
    "pyarrow": {"corpus"},
    "boto3": {"data"},
    "tokenizers": {"shards"},
}
# The way of the data; a stop may import from stops before it, never from later ones.
ORDER = [
    *(
        {"errors.py", "__init__.py", "whole_file.py", "published"},
        {"corpus"},
        {"shards"},
        {"checkpoint_file.py", "sharded_checkpoint.py", "checkpoint_io.py"},
        {"bags.py", "fused_cross_entropy.py", "losses.py", "metrics.py", "muon.py", "optim.py", "continuation.py"},
    ),
    *(
        {"modeling"},
        {"phases"},
        {"fully_sharded.py"},
        {"data"},
        {"flops"},
        {"module.py"},
        {"callbacks"},
        {"compare"},
        {"mutual_information"},
        {"export"},
        {"evaluation"},
        {"plan"},
        {"sweep"},
        {"commands"},
    ),
    {"__main__.py"},
]


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def imports(path: Path) -> set[str]:
    """Modules that a file imports, those for the type checker alone left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    rank = {name: index for index, names in enumerate(ORDER) for name in names}
    for module in imports(path):
        if module.startswith("tst_lightning."):
            part = module.split(".")[1]
            target = part if part in rank else f"{part}.py"
            assert rank[target] <= rank[place(path)], f"{place(path)} imports {module}"
        library = module.split(".")[0]
        assert place(path) in KEPT_IN.get(library, {place(path)}), f"{place(path)} imports {library}"


def reached(module: str, found: set[str]) -> set[str]:
    """A module of the package, the packages that hold it, and all that they import, one through another."""
    parts = module.split(".")
    for name in (".".join(parts[: end + 1]) for end in range(len(parts))):
        path = ROOT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in found:
            found.add(name)
            for other in imports(path) if path.exists() else ():
                reached(other, found) if other.startswith("tst_lightning") else found.add(other.split(".")[0])
    return found


def test_a_plan_of_a_model_does_not_wait_for_lightning() -> None:
    found = reached("tst_lightning.plan.document", reached("tst_lightning.commands.plan_model", set()))
    assert "transformers" in found and not found & {"lightning", "litdata"}


def test_every_test_file_is_collected(request: pytest.FixtureRequest) -> None:
    if request.config.option.keyword or request.config.option.markexpr or request.config.args != ["tests"]:
        pytest.skip("only a selection of the tests was asked for")
    collected = {Path(item.path) for item in request.session.items}
    assert collected == set((ROOT / "tests").rglob("test_*.py"))
    assert len(request.session.items) > 250
