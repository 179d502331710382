"""The public names, the error tree and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wustore
from wustore import errors
from wustore.backends.registry import backend_named
from wustore.ops.copy import copy
from wustore.testing import sample

HEAVY = {
    "astropy", "zarr", "h5py", "numcodecs", "pcodec", "imagecodecs", "yaml", "click", "tqdm", "numpy",
    "dask", "xarray", "hdf5plugin", "obstore", "fsspec", "jsonschema", "pyarrow", "matplotlib",
}  # fmt: skip


def modules_after(program):
    """The modules that a fresh interpreter has loaded after a program."""
    text = f"import sys\n{program}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", text], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_loads_nothing():
    # Modules are counted, not seconds: the count is the same on every machine.
    before, after = set(modules_after("")), set(modules_after("import wustore"))
    added = {name for name in after - before if not name.startswith("wustore")}
    assert not {name.partition(".")[0] for name in added} & HEAVY
    assert {name for name in after if name.startswith("wustore")} == {"wustore", "wustore._version", "wustore.errors"}


@pytest.mark.parametrize("name", ["open", "convert", "WuStoreError", "CorruptError"])
def test_light_names_stay_light(name):
    loaded = {module.partition(".")[0] for module in modules_after(f"import wustore; wustore.{name}")}
    assert not loaded & {"astropy", "zarr", "h5py", "dask", "xarray", "imagecodecs", "jsonschema"}


def test_pixels_are_loaded_without_astropy(tmp_path):
    path = str(tmp_path / "x.zarr")
    source = sample("rich")
    copy(source, backend_named("zarr").create(path, source.meta))
    program = f"import wustore; w = wustore.open({path!r}); w.load_images()"
    assert "astropy" not in modules_after(program)
    assert "astropy.coordinates" in modules_after(f"{program}; assert w.observatory is w.observatory")


def test_every_public_name_is_there():
    assert len(set(wustore.__all__)) == len(wustore.__all__)
    for name in wustore.__all__:
        assert getattr(wustore, name) is not None
        assert name in dir(wustore)
    with pytest.raises(AttributeError, match="no attribute 'what'"):
        wustore.what  # noqa: B018


def test_all_says_what_the_source_says():
    # Type checkers see the block under TYPE_CHECKING, Python the table of homes: they must name the same.
    tree = ast.parse(Path(wustore.__file__).read_text("utf-8"))
    imported = {
        (name, node.module)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in (errors.__all__ if node.module == "wustore.errors" else [alias.name for alias in node.names])
    }
    assert imported == {(name, f"wustore.{home}") for name, home in wustore._HOMES.items()}
    assert set(wustore.__all__) == set(wustore._HOMES)


def test_modules_name_what_is_theirs():
    # Every name in a module's __all__ is defined there.
    for path in sorted(Path(wustore.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        listed = next(
            (
                [ast.literal_eval(item) for item in node.value.elts]
                for node in tree.body
                if isinstance(node, ast.Assign)
                and [getattr(target, "id", None) for target in node.targets] == ["__all__"]
                and isinstance(node.value, ast.List)
            ),
            [],
        )
        bound = {name.id for name in ast.walk(tree) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
        bound |= {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        bound |= {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        assert set(listed) <= bound, path


def drawn_tree():
    """The tree in the docstring of `wustore.errors`: name to (name of the parent, builtins beside it)."""
    drawn = {}
    path = []
    for line in errors.__doc__.splitlines():
        match = re.fullmatch(r"( *)(?:(\||`)- )?([\s|`-]*)(\w*Error)\b(.*)", line)
        if match is None or not line.startswith("    "):
            continue
        depth = (line.index(match[4]) - 4 + 3) // 4
        builtins = re.search(r"\((\w+Error(?:, \w+Error)*)\)", match[5])
        path[depth:] = [match[4]]
        drawn[match[4]] = (path[depth - 1] if depth else None, builtins[1].split(", ") if builtins else [])
    return drawn


def test_error_tree_is_as_drawn():
    drawn = drawn_tree()
    assert set(drawn) == set(errors.__all__)
    for name, (parent, builtins) in drawn.items():
        bases = [base.__name__ for base in getattr(errors, name).__bases__]
        assert bases == [parent or "Exception", *builtins], name


def test_every_leaf_is_a_builtin():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if not kind.__subclasses__():
            assert any(
                base.__module__ == "builtins" for base in kind.__mro__ if base not in {Exception, BaseException, object}
            )


@pytest.mark.parametrize("name", errors.__all__)
def test_message_says_everything(name):
    error = getattr(errors, name)(
        "it broke", path="a.zarr", where="chunk 3", expected=5, found=0, hint="Fetch it again."
    )
    assert str(error) == "it broke [a.zarr, chunk 3]; expected 5; found 0. Fetch it again."
    assert (error.path, error.where, error.expected, error.found) == ("a.zarr", "chunk 3", 5, 0)


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_cross_processes(name):
    import pickle

    error = getattr(errors, name)("it broke", path="a.zarr", where="chunk 3", expected=5, found=0, hint="Cure.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
