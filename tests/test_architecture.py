"""The shape of the house: who imports whom, what start-up may load, how long things may be."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "objtune_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
OTHERS = (
    "bases",
    "bench",
    "cli",
    "config",
    "errors",
    "families",
    "library",
    "method",
    "models",
    "numerics",
    "paths",
    "settings",
    "stages",
    "store",
    "tables",
    "toybox",
)
HEAVY = {
    "torch",
    "torchvision",
    "cv2",
    "numpy",
    "PIL",
    "diffusers",
    "transformers",
    "peft",
    "safetensors",
    "rich",
    "huggingface_hub",
}
ALLOWED = {
    "": {"cli", "library"},  # __init__, __main__
    "library": {"config", "errors", "paths", "settings", "stages", "store"},
    "errors": set(),
    "paths": {"errors"},
    "tables": {"errors"},
    "config": {"errors"},
    "settings": {"config", "errors", "paths", "tables"},
    "families": {"families", "errors", "numerics"},
    "bases": {"errors", "families", "paths"},
    "store": {"errors", "paths", "store"},
    "numerics": {"numerics"},
    "models": {"models", "numerics", "errors", "families"},
    "method": {"method", "config", "errors", "models", "numerics"},
    "stages": set(OTHERS) - {"cli", "bench"},
    "bench": set(OTHERS) - {"cli"},
    "cli": {"cli", "store", "config", "settings", "errors", "bases", "stages", "bench", "paths", "tables"},
    "toybox": {"toybox", "errors"},
}
"""Part of the package to the parts it may import, wherever the import stands."""
LIGHT = {
    "",
    "errors",
    "config",
    "settings",
    "families",
    "library",
    "bases",
    "paths",
    "store",
    "stages",
    "tables",
    "cli",
}
"""Parts that load nothing heavy when they are imported."""


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first.startswith("__") else first


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path: Path, *, inside_functions: bool) -> Iterator[str]:
    """Dotted names that a module imports when it runs; imports for type checkers do not count."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if only_for_types(child):
                continue
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not inside_functions:
                continue
            yield child
            yield from walk(child)

    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_part(dotted: str) -> str:
    """The part of the package that an import names; empty for the package itself and for others."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "objtune_cli" and len(parts) > 1 and parts[1] in OTHERS else ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_part_imports_only_its_neighbours(path: Path) -> None:
    used = {own_part(name) for name in imports(path, inside_functions=True)} - {""}
    allowed = ALLOWED[part_of(path)]
    if path.is_relative_to(PACKAGE / "toybox" / "recipe"):
        allowed = allowed | {"bases", "models", "numerics"}
    assert used <= allowed, f"{name_of(path)} may not import {sorted(used - allowed)}"


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) in LIGHT], ids=name_of)
def test_nothing_heavy_at_module_level(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path, inside_functions=False)}
    assert not tops & HEAVY


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) == "numerics"], ids=name_of)
def test_numerics_knows_torch_and_numpy_only(path: Path) -> None:
    """And of the standard library nothing that reaches a file or the system."""
    tops = {name.split(".")[0] for name in imports(path, inside_functions=True)}
    assert tops <= {"torch", "numpy", "objtune_cli", "math", "dataclasses", "typing", "collections"}


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) == "cli"], ids=name_of)
def test_the_porch_loads_stages_only_inside_functions(path: Path) -> None:
    names = [name for name in imports(path, inside_functions=False) if name.startswith("objtune_cli.stages")]
    assert all(name.startswith("objtune_cli.stages.context") for name in names), names


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) == "stages"], ids=name_of)
def test_stages_load_models_and_method_only_inside_functions(path: Path) -> None:
    assert not {own_part(name) for name in imports(path, inside_functions=False)} & {
        "models",
        "method",
        "numerics",
        "toybox",
    }


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in MODULES:
        text = path.read_text()
        lines = len(text.splitlines())
        if lines > 480:
            long.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno and node.end_lineno - node.lineno >= 120:
                long.append(f"{name_of(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert not long, "\n".join(long)


OPENS = ("from_pretrained", "snapshot_download", "hf_hub_download")


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) != "stages/fetch.py"], ids=name_of)
def test_nothing_but_fetch_opens_a_connection(path: Path) -> None:
    """Whatever could download is told to open local files only, itself or by `**local`; and no other client is imported."""
    tree = ast.parse(path.read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).rsplit(".", 1)[-1] in OPENS]
    said = [ast.unparse(call) for call in calls]
    assert [text for text in said if "local_files_only=True" not in text and "**local" not in text] == []
    if any("**local" in text for text in said):
        assert "local_files_only" in path.read_text()
    clients = ("socket", "urllib.request", "http.client", "requests", "httpx", "httpx2", "aiohttp", "torch.hub")
    assert [name for name in imports(path, inside_functions=True) if name.startswith(clients)] == []


LOADED = """
import sys
from objtune_cli.cli.app import run
try:
    code = run(sys.argv[1:])
except SystemExit as done:
    code = done.code
print("loaded", sorted({"torch", "numpy", "PIL", "cv2", "diffusers", "rich"} & set(sys.modules)), "code", code, file=sys.stderr)
"""


def loaded_by(*args: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOADED, *args]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def one_mask(project: Path) -> Path:
    """A project with the artifact mask/x@1."""
    import numpy as np

    from objtune_cli.store.artifact import Record, publish

    publish(project / "artifacts", Record("mask", "x", {"x": "dog"}, {}, {}, {}), {"mask": np.zeros((2, 2), np.uint8)})
    return project


@pytest.mark.parametrize(
    "line", ["--help", "train --help", "--version", "list", "list --json", "show mask/x", "verify"]
)
def test_start_up_loads_nothing_heavy(line: str, one_mask: Path) -> None:
    done = loaded_by(*line.split(), folder=one_mask)
    assert done.stderr.endswith("loaded [] code 0\n"), done.stderr
    if line not in ("verify",):
        assert done.stdout


def test_completion_loads_nothing_heavy(one_mask: Path) -> None:
    done = loaded_by(folder=one_mask, _OBJTUNE_COMPLETE="complete_bash", COMP_WORDS="objtune show ", COMP_CWORD="2")
    assert done.stdout == "mask/x@1\n"
    assert done.stderr == "loaded [] code 0\n"


def test_the_import_reader_sees_what_it_should(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(
        "from typing import TYPE_CHECKING\nimport torch.nn\nif TYPE_CHECKING:\n    import numpy\nclass A:\n    import cv2\n"
        "def f():\n    from objtune_cli import stages\n"
    )
    assert set(imports(sample, inside_functions=False)) == {"typing.TYPE_CHECKING", "torch.nn", "cv2"}
    assert "objtune_cli.stages" in set(imports(sample, inside_functions=True))
    assert own_part("objtune_cli.stages") == "stages"
    assert own_part("objtune_cli.__version__") == ""
