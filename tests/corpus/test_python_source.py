import hashlib
import sysconfig
from pathlib import Path
from types import SimpleNamespace

from tst_lightning.corpus import python_source
from tst_lightning.corpus.documents import Counts, read_documents
from tst_lightning.corpus.inputs import walk
from tst_lightning.corpus.python_source import by_content, find_python_files


def test_the_standard_library_is_there_without_packages():
    sources = find_python_files(packages=False)
    names = {source.name for source in sources}
    assert {"argparse.py", "json/decoder.py"} <= names
    assert not [source.path for source in sources if "site-packages" in source.path.parts]
    assert len(sources) > 500
    assert all(name.endswith(".py") for name in names)


def test_packages_come_on_top_of_it():
    names = {source.name for source in find_python_files(packages=True)}
    assert {source.name for source in find_python_files(packages=False)} <= names
    assert {"argparse.py", "pytest/__init__.py"} <= names


def test_what_differs_from_clone_to_clone_is_left_out(tmp_path, monkeypatch):
    for name in ("__editable___tst_lightning_0_1_0_finder.py", "tst_lightning/bags.py", "other/bags.py", "other.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    where = {"stdlib": "none", "platstdlib": "none", "purelib": str(tmp_path), "platlib": str(tmp_path)}
    monkeypatch.setattr(python_source, "sysconfig", SimpleNamespace(get_path=where.get))
    assert [source.name for source in find_python_files(packages=True)] == ["other.py", "other/bags.py"]


def test_the_order_and_the_copies_depend_on_content_alone(tmp_path):
    contents = [f"x = {i}\n" for i in range(20)]
    for folder, order in (("here", contents), ("there", contents[::-1])):
        (tmp_path / folder).mkdir()
        for i, content in enumerate([*order, order[0]]):
            (tmp_path / folder / f"{i:02}.py").write_text(content)
        (tmp_path / folder / "__init__.py").touch()
    texts = {}
    for folder in ("here", "there"):
        counts = Counts()
        ordered = by_content(walk(tmp_path / folder), counts)
        texts[folder] = ["".join(document.text()) for document in read_documents(ordered.values(), "text", counts)]
        assert counts == Counts(22, 20, sum(map(len, contents)), dropped_duplicates=1, dropped_empty=1)
    assert (
        texts["here"] == texts["there"] == sorted(contents, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    )


def test_the_interpreters_own_undecodable_files_are_counted():
    # The standard library's tests hold files that are wrong on purpose; some distributions leave them out.
    counts = Counts()
    sources = [source for source in find_python_files(packages=False) if "bad" in source.name or source.name[0] == "a"]
    read = sum(1 for _ in read_documents(sources, "text", counts))
    assert read == counts.documents > 0
    assert read + counts.skipped_undecodable + counts.dropped_empty == len(sources) == counts.files
    if Path(sysconfig.get_path("stdlib"), "test/tokenizedata/badsyntax_pep3120.py").exists():
        assert counts.skipped_undecodable > 0
