"""What README and docs show is true: their code runs, their files exist, their tables are those of the code.

In each page the ``python`` and ``console`` blocks run one after the other, in one empty directory. A console
block holds commands behind ``$``; lines below one are what it prints, ``...`` standing for anything. A command
must end with 0, or with the N of a comment ``# exit code N`` behind it. Other blocks (``sh``, ``text``) are not run.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks, commands, is_like

from wustore.cli import COMMANDS
from wustore.cli._run import DAMAGED, DIFFERS, INCOMPLETE, OK, USAGE
from wustore.format.version import VERSION


def run_python(text, page, directory):
    # A process of its own: a script that a reader pastes into a file. Another cluster on this machine is no error.
    strict = ["-W", "error", "-W", "ignore:Port"]
    done = subprocess.run(
        [sys.executable, *strict, "-c", text], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page.name}:\n{text}\n{done.stderr}"


def run_console(text, page, directory):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command, code, expected in commands(text):
        done = subprocess.run(
            ["bash", "-c", command], cwd=directory, capture_output=True, text=True, env=os.environ | {"PATH": path},
            check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{page.name}: {command}\n{done.stdout}\n{done.stderr}"
        assert is_like(done.stdout, expected), f"{command}\n{done.stdout}"


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if any(b[0] in {"python", "{shown}", "console"} for b in blocks(p))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_blocks_run(page, tmp_path):
    for language, text in blocks(page):
        if language in {"python", "{shown}"}:
            run_python(text, page, tmp_path)
        elif language == "console":
            run_console(text, page, tmp_path)


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    processors = pytest.importorskip("nbconvert.preprocessors", reason="needs the extra docs")
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    # Work that takes longer than DELAY shows a bar: here all of it.
    late = (
        "from wustore.stamps import notebook\nnotebook.DELAY = 0\nwu.trajectory_stamps([[95, 140, 260, 150]], radius=5)"
    )
    notebook.cells.insert(-1, nbformat.v4.new_code_cell(late))  # before the WorkUnit is closed
    run = processors.ExecutePreprocessor(timeout=300, kernel_name="python3")
    done, _ = run.preprocess(notebook, {"metadata": {"path": str(tmp_path)}})
    shown = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert all(output["output_type"] != "error" for output in shown)
    rich = [output["data"] for output in shown if output["output_type"] == "execute_result"]
    assert any("text/html" in data for data in rich)
    bars = [output for output in done.cells[-2]["outputs"] if output["output_type"] != "execute_result"]
    assert any("cutting" in output.get("text", str(output.get("data"))) for output in bars)


def anchors(page):
    """The names of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_files_exist(page):
    text = page.read_text("utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if "://" in target:
            continue
        assert page.name != "README.md", f"{target}: PyPI shows the README, and knows no other file"
        aim = page.parent / target if target else page
        assert aim.exists(), target
        assert not anchor or anchor in anchors(aim), f"{target}#{anchor}"
    for name in re.findall(r"`((?:tests|docs|schemas|wustore)/[\w./-]+\.\w+)", text):
        assert (ROOT / name).is_file(), name
    for file, test in re.findall(r"`(tests/\w+\.py)::(\w+)", text):
        assert f"def {test}(" in (ROOT / file).read_text("utf-8"), f"{file}::{test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_exist(page):
    for name in re.findall(r"`wustore ([a-z]\w*)", page.read_text("utf-8")):
        assert name in COMMANDS, name


def public_names():
    """The names that other programs may use, as ``module.name``."""
    for module in ("", ".work_unit", ".configuration", ".kbmod", ".xarray", ".backends", ".testing"):
        home = importlib.import_module(f"wustore{module}")
        for name in home.__all__:
            yield f"wustore{module}.{name}", getattr(home, name)


def test_reference_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    directives = re.findall(r"^\.\. (?:auto\w+|py:data):: (wustore\.[\w.]+)$", text, re.MULTILINE)
    assert len(directives) == len(set(directives))
    listed = {name.rpartition(".")[2] for name in directives}
    public = dict(public_names())
    assert listed == {name.rpartition(".")[2] for name in public}
    assert set(directives) <= set(public)
    for name, value in public.items():
        assert inspect.getdoc(value) or name.endswith((".Progress", ".Index")), (
            name
        )  # types: the page says what they are


def test_terms_are_used():
    # A table, one word a row, each once.
    rows = re.findall(r"^\| ([a-z][\w, ]*) \|", (ROOT / "docs" / "terms.md").read_text("utf-8"), re.MULTILINE)
    words = [word for row in rows for word in row.split(", ") if word != "term"]
    assert len(words) > 30
    assert len(words) == len(set(words))


def test_every_page_is_in_the_site():
    trees = [page.read_text("utf-8") for page in PAGES if "{toctree}" in page.read_text("utf-8")]
    listed = {name for text in trees for name in re.findall(r"^([\w/]+)$", text, re.MULTILINE)}
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in PAGES if page.parent != ROOT}
    assert {name.name if name.parent.name == "howto" and name.name != "index" else str(name) for name in pages} - {
        "index"
    } <= listed


def test_readme_opens_with_the_two_commands():
    language, text = blocks(ROOT / "README.md")[0]
    first, second = text.splitlines()
    assert language == "sh"
    assert first == "python -m venv .venv && .venv/bin/pip install . && .venv/bin/wustore demo"
    assert second == "python -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest"
    assert (ROOT / "README.md").read_text("utf-8").index("```") < 400


def test_readme_has_every_command_and_exit_code():
    text = (ROOT / "README.md").read_text("utf-8")
    assert all(f"`wustore {name}" in text for name in COMMANDS)
    listed = [int(code) for code in re.findall(r"^\| (\d) \|", text, re.MULTILINE)]
    assert listed == [OK, DIFFERS, USAGE, DAMAGED, INCOMPLETE]


def test_extras_are_those_of_the_package():
    import tomllib

    text = (ROOT / "README.md").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    listed = set(re.findall(r"^\| `(\w+)` \|", text[text.index("## Extras") :], re.MULTILINE))
    assert listed == set(extras)
    users = {name for name in extras if name not in {"all", "test", "lint", "docs"}}
    assert extras["all"] == [f"wustore[{','.join(name for name in extras if name in users)}]"]


def test_spec_has_the_versions_of_the_code():
    text = (ROOT / "docs" / "spec.md").read_text("utf-8")
    assert f"version **{VERSION}**" in text


def test_spec_names_every_array_and_key():
    from wustore.format.schema import load

    text = (ROOT / "docs" / "spec.md").read_text("utf-8")
    for name in load("layout")["properties"]["arrays"]["properties"]:
        assert f"`{name}`" in text, name
    document = load("document")
    keys = [
        *document["properties"],
        *document["$defs"]["layer"]["properties"],
        *document["$defs"]["column"]["properties"],
    ]
    for key in keys:
        assert f"`{key}`" in text, key
