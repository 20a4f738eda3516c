"""The shape of the house: who imports whom, what start-up may load, how long things may be."""

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "objtune_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
STAIRCASE = (
    # foundations
    "errors", "version", "renamed_settings", "paths", "config", "numerics", "store", "images", "runtime",
    # models
    "models", "lora", "workflow",
    # features: one folder per command
    "interchange", "segmentation", "embedding", "generation", "composition", "placement", "training",
    # measuring
    "toybox", "evaluation", "bench", "report",
    # porch
    "doctor", "api", "ui", "cli",
)  # fmt: skip
"""A module may import its own package and whatever stands before it here."""
FORBIDDEN = {
    "config": {"store", "images"},
    "numerics": {"errors", "renamed_settings", "paths", "config"},
    "store": {"config", "numerics"},
    "images": {"config", "numerics"},
    "runtime": {"config", "numerics", "store", "images"},
    "models": {"config", "store", "images"},
    "lora": {"config", "store", "images"},
    "segmentation": {"interchange", "lora"},
    "embedding": {"interchange", "segmentation", "lora"},
    "generation": {"segmentation", "embedding"},
    "composition": {"interchange", "embedding"},
    "placement": {"interchange", "embedding"},
    "training": {"interchange", "segmentation"},
    "toybox": {"config", "store", "images", "workflow"},
    "ui": {
        "interchange",
        "embedding",
        "generation",
        "placement",
        "training",
        "evaluation",
        "bench",
        "toybox",
        "numerics",
        "lora",
        "api",
        "doctor",
    },
    "cli": {"numerics", "runtime", "lora", "toybox"},
}
"""Steps that stand before a package and that it still does without."""
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
    "obstore",
}
TOYBOX_WORLD = (
    "models",
    "segmentation",
    "numerics",
    "lora",
    "interchange",
    "embedding",
    "generation",
    "composition",
    "placement",
    "training",
)
"""What the drawn world needs none of; its recipe, which trains models, does."""


@functools.cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file; most tests look at every file."""
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    """A module's step of the staircase; empty for the package itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first.startswith("__") else first


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@functools.cache
def imports(path: Path, *, inside_functions: bool) -> tuple[str, ...]:
    """Dotted names that a module imports when it runs; imports for type checkers do not count."""
    names: list[str] = []
    waiting: list[ast.AST] = [parse(path)]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if only_for_types(node) or (isinstance(node, FUNCTIONS) and not inside_functions):
                continue
            waiting.append(node)
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name_of(path)} has a relative import"
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def own_part(dotted: str) -> str:
    """The part of the package that an import names; empty for the package itself and for others."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "objtune_cli" and len(parts) > 1 and parts[1] in STAIRCASE else ""


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p)], ids=name_of)
def test_imports_go_down_the_staircase(path: Path) -> None:
    part = part_of(path)
    used = {own_part(name) for name in imports(path, inside_functions=True)} - {""}
    below = set(STAIRCASE[: STAIRCASE.index(part) + 1]) - FORBIDDEN.get(part, set())
    if part == "toybox" and not path.is_relative_to(PACKAGE / "toybox" / "recipe"):
        below -= set(TOYBOX_WORLD)
    assert used <= below, f"{name_of(path)} may not import {sorted(used - below)}"


def test_every_module_stands_on_the_staircase() -> None:
    assert {part_of(path) for path in MODULES} == {"", *STAIRCASE}


def module_of(dotted: str) -> Path | None:
    """The file of an own module that a dotted import names, or of the module that holds the imported name."""
    for name in (dotted, dotted.rpartition(".")[0]):
        place = PACKAGE.parent.joinpath(*name.split("."))
        for candidate in (place.with_suffix(".py"), place / "__init__.py"):
            if candidate.is_file() and candidate.is_relative_to(PACKAGE):
                return candidate
    return None


def import_circles(graph: Mapping[Path, set[Path]]) -> list[set[Path]]:
    """Strongly connected components of more than one module (Tarjan, SIAM J. Comput. 1972)."""
    order: dict[Path, int] = {}
    lowest: dict[Path, int] = {}
    stack: list[Path] = []
    circles: list[set[Path]] = []

    def visit(module: Path) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for imported in sorted(graph[module]):
            if imported not in order:
                visit(imported)
            if imported in stack:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == order[module]:
            component = set(stack[stack.index(module) :])
            del stack[stack.index(module) :]
            if len(component) > 1:
                circles.append(component)

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return circles


def test_the_import_circle_finder_finds_circles() -> None:
    a, b, c, d, e = (Path(name) for name in "abcde")
    assert import_circles({a: {b}, b: {c, d}, c: {a}, d: {e}, e: set()}) == [{a, b, c}]
    assert import_circles({a: {b}, b: {c}, c: set(), d: {b}, e: {d, a}}) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count, imports for type checkers do not."""
    graph = {
        path: {m for name in imports(path, inside_functions=True) if (m := module_of(name)) and m != path}
        for path in MODULES
    }
    circles = [sorted(name_of(path) for path in circle) for circle in import_circles(graph)]
    assert circles == []


def loaded_with(path: Path) -> set[Path]:
    """All own modules that importing one module loads."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [m for name in imports(path, inside_functions=False) if (m := module_of(name))]
    return found


STAGES = (
    "segmentation/segment",
    "embedding/init_embedding",
    "training/train",
    "training/train_many",
    "generation/generate",
    "composition/compose",
    "placement/place",
)

START = sorted(
    {*PACKAGE.glob("*.py"), *(PACKAGE / "cli").rglob("*.py"), *(PACKAGE / f"{stage}.py" for stage in STAGES)}
)
"""What a command imports before it knows what it has to do."""


@pytest.mark.parametrize("path", START, ids=name_of)
def test_the_start_of_a_command_loads_nothing_heavy(path: Path) -> None:
    heavy = {
        f"{name_of(module)}: {name}"
        for module in loaded_with(path)
        for name in imports(module, inside_functions=False)
        if name.split(".")[0] in HEAVY
    }
    assert not heavy


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) == "numerics"], ids=name_of)
def test_numerics_knows_torch_and_numpy_only(path: Path) -> None:
    """And of the standard library nothing that reaches a file or the system."""
    tops = {name.split(".")[0] for name in imports(path, inside_functions=True)}
    assert tops <= {"torch", "numpy", "objtune_cli", "math", "dataclasses", "typing", "collections"}


FEATURES = set(STAIRCASE[STAIRCASE.index("interchange") : STAIRCASE.index("doctor") + 1])


@pytest.mark.parametrize("path", [p for p in MODULES if part_of(p) == "cli"], ids=name_of)
def test_the_command_line_loads_features_only_inside_functions(path: Path) -> None:
    names = [name for name in imports(path, inside_functions=False) if own_part(name) in FEATURES]
    assert not names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(parse(path))


MAX_FILE_LINES, MAX_FUNCTION_LINES = 320, 60
LONG_FILES: dict[str, int] = {}
"""Files that may be longer, and their limits, which only fall."""
LONG_FUNCTIONS = {
    # A command's options are its parameters.
    "cli/commands/export.py:export": 64,
}
"""Functions that may be longer, and their limits, which only fall."""


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            yield f"{name_of(path)}:{node.name}", node.end_lineno - node.lineno + 1


def test_files_and_functions_stay_short() -> None:
    files = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    functions = {name: lines for path in MODULES for name, lines in function_lengths(path)}
    long = [f"{name}: {n} lines" for name, n in files.items() if n > LONG_FILES.get(name, MAX_FILE_LINES)]
    long += [f"{name}: {n} lines" for name, n in functions.items() if n > LONG_FUNCTIONS.get(name, MAX_FUNCTION_LINES)]
    assert not long, "\n".join(long)


def called_name(call: ast.Call) -> str:
    """The last part of the name of what is called; "" if it has none."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


OPENS = ("from_pretrained", "snapshot_download", "hf_hub_download")


DOWNLOADS = ("interchange/hub.py", "interchange/hub_download.py", "workflow/photo_sources.py", "cli/ray_workers.py")
"""Models by `fetch`, photos by their web addresses, and batches to a Ray cluster with `--on ray`."""
STORAGE = ("store/remote_backend.py", "store/storage_client.py")
"""Object storage, when `--project` is the address of a bucket."""


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) not in DOWNLOADS], ids=name_of)
def test_nothing_but_fetch_opens_a_connection(path: Path) -> None:
    """Whatever could download is told to open local files only, itself or by `**local`; and no other client is imported."""
    tree = parse(path)
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and called_name(n) in OPENS]
    said = [ast.unparse(call) for call in calls]
    assert [text for text in said if "local_files_only=True" not in text and "**local" not in text] == []
    if any("**local" in text for text in said):
        assert "local_files_only" in path.read_text()
    clients = ("socket", "urllib.request", "http.client", "requests", "httpx", "httpx2", "aiohttp", "torch.hub")
    storage = () if name_of(path) in STORAGE else ("obstore",)
    assert [name for name in imports(path, inside_functions=True) if name.startswith((*clients, *storage))] == []


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) != "cli/ray_workers.py"], ids=name_of)
def test_one_module_knows_ray(path: Path) -> None:
    """It is an extra, and it opens connections."""
    assert [name for name in imports(path, inside_functions=True) if name.split(".")[0] == "ray"] == []


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

    from objtune_cli.store.artifacts import Record
    from objtune_cli.store.store import Store

    Store.at(project).create(Record("mask", "x", {"x": "dog"}, {}, {}, {}), {"mask": np.zeros((2, 2), np.uint8)})
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
        "def f():\n    from objtune_cli import bench\n"
    )
    assert set(imports(sample, inside_functions=False)) == {"typing.TYPE_CHECKING", "torch.nn", "cv2"}
    assert "objtune_cli.bench" in set(imports(sample, inside_functions=True))
    assert own_part("objtune_cli.bench") == "bench"
    assert own_part("objtune_cli.__version__") == ""
