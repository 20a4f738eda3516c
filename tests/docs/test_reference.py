"""The generated pages are what the code says."""

import importlib.util
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/build_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("build_reference", DOCS / "build_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["commands", "settings", "exit_codes", "json_output", "api"])
def test_a_generated_page_is_up_to_date(generator: ModuleType, page: str) -> None:
    path = {"exit_codes": "exit-codes", "json_output": "json"}.get(page, page)
    assert (DOCS / f"reference/{path}.md").read_text() == getattr(generator, page)(), "run `make reference`"


def test_every_generated_page_is_checked_here(generator: ModuleType) -> None:
    generated = [p for p in (DOCS / "reference").glob("*.md") if p.read_text().startswith(generator.NOTE)]
    assert len(generated) == 5


def test_every_option_stands_in_the_page_once(generator: ModuleType) -> None:
    """An option of a command's help is in the command's own table, or among those it shares with others."""
    page = (DOCS / "reference/commands.md").read_text()
    _, options = generator.split_options(generator.run_help("train"))
    own = page[page.index("## `objtune train`") : page.index("## `objtune generate`")]
    for flag in options:
        name = flag.split()[0].rstrip(",")
        assert f"<code>{generator.html(flag)}</code>" in own or f"`{name}`" in own or flag in page, flag
    assert len(options) > 20
