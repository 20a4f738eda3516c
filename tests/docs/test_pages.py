"""Every page: links and anchors resolve, command lines and settings exist, sentences are short."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from objtune_cli.config.sections import SECTIONS, Common
from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md"), *(REPOSITORY / ".github").rglob("*.md")])
GENERATED = {"commands.md", "settings.md", "exit-codes.md", "json.md", "api.md"}
MOST_WORDS = 25


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.S | re.M)


def anchors(path: Path) -> set[str]:
    """The ids of a page's headings, as MkDocs and code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text()), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose(path.read_text())):
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), f"{target} does not exist"
        assert not anchor or page.suffix != ".md" or anchor in anchors(page), f"{target}: no such heading"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "objtune_cli").rglob("*.py")), ids=name_of)
def test_pages_that_the_package_names_exist(path: Path) -> None:
    for page in re.findall(r"\bdocs/[\w./-]+\.(?:md|json|toml|jpg)\b", path.read_text()):
        assert (REPOSITORY / page).exists(), page


def test_the_site_lists_every_page() -> None:
    def listed(entries: Any) -> list[str]:
        if isinstance(entries, str):
            return [entries]
        return [page for entry in entries for page in listed(entry.values() if isinstance(entry, dict) else [entry][0])]

    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    moved = {line.lstrip("/") for line in site["exclude_docs"].split()}
    pages = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    assert sorted(listed(site["nav"])) == sorted(pages - moved)


# Command lines: every `objtune …` of a code block or of inline code names a command and options that exist.


def command_lines(text: str) -> list[str]:
    """Command lines of a page, joined where they end with a backslash."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^```(?:console|bash|sh|yaml)\n(.*?)^```", text, re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [line for line in prose(text).splitlines() if line.startswith("    objtune ")]
    lines += re.findall(r"`(objtune [^`\n]+)`", prose(text))
    found = [
        re.findall(r"(?:^|[\s|&;(])(objtune\s[^|&;>#]*)", re.sub(r"\"[^\"]*\"|'[^']*'", "X", line)) for line in lines
    ]
    return [command.strip() for commands in found for command in commands]


def options_by_command() -> dict[str, set[str]]:
    """Command name to the options that it takes, from the generated page."""
    text = (DOCS / "reference/commands.md").read_text()
    sections = {part.split("\n")[0].strip("` "): part for part in text.split("\n## ")[1:]}

    def flags(section: str) -> set[str]:
        tables = "\n".join(re.findall(r"^\| <code>(.*?)</code>", section, re.M))
        return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", tables))

    shared = flags(sections["Global options"]) | flags(sections["Model options"]) | {"--version"}
    return {
        name.removeprefix("objtune "): flags(s) | shared for name, s in sections.items() if name.startswith("objtune ")
    }


@pytest.mark.parametrize("path", [p for p in PAGES if p.name not in GENERATED], ids=name_of)
def test_command_lines_name_commands_and_options_that_exist(path: Path) -> None:
    options = options_by_command()
    for line in command_lines(path.read_text()):
        words = line.split()[1:]
        command = next((word for word in words if not word.startswith("-")), "")
        if not command or command in ("COMMAND", "…"):
            continue
        assert command in options, f"{line}: no such command"
        used = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        assert used <= options[command], f"{line}: no such option"


def test_options_of_the_page_are_found() -> None:
    options = options_by_command()
    assert {"--class", "-c", "--no-preview", "--json", "--set", "--max-time"} <= options["train"]
    assert "--max-time" not in options["generate"] and len(options) > 20


@pytest.mark.parametrize("path", [p for p in PAGES if p.name not in (*GENERATED, "CHANGELOG.md")], ids=name_of)
def test_settings_of_a_page_exist(path: Path) -> None:
    from dataclasses import fields

    known = {section: {f.name for f in fields(kind)} for section, kind in SECTIONS.items()}
    named = re.findall(rf"(?<![\w./-])({'|'.join(map(re.escape, known))})\.([a-z][a-z0-9_]*)", path.read_text())
    files = {"py", "md", "toml", "jpg", "png", "json", "safetensors"}
    wrong = [f"{section}.{key}" for section, key in named if key not in known[section] | files]
    assert not wrong and {f.name for f in fields(Common)} >= {"base"}


def sentences(text: str) -> list[str]:
    """Sentences of running text: no code, tables, headings or links' addresses."""
    text = re.sub(r"\]\([^)]*\)", "]", prose(text))
    text = re.sub(r"`[^`]*`", "X", text)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|<|!\[|    )", line)]
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))
    return [s for block in blocks for s in re.split(r"(?<=[.:?!])\s+", " ".join(block.split()))]


@pytest.mark.parametrize("path", [p for p in PAGES if p.name not in GENERATED], ids=name_of)
def test_sentences_are_short(path: Path) -> None:
    long = [s for s in sentences(path.read_text()) if len(s.split()) > MOST_WORDS]
    assert not long, "\n".join(f"{len(s.split())} words: {s}" for s in long)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_code_blocks_can_be_read(path: Path) -> None:
    """TOML, YAML and Python are valid; shell lines have closed quotes."""
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```", path.read_text(), re.S | re.M):
        if kind == "toml":
            tomllib.loads(block)
        elif kind == "yaml":
            yaml.safe_load(block)
        elif kind == "python" and path.name != "api.md":
            compile(block, name_of(path), "exec")
        elif kind == "bash":
            assert all(shlex.split(line, comments=True) for line in block.splitlines() if line.strip())


def test_code_blocks_are_closed() -> None:
    for path in PAGES:
        assert path.read_text().count("\n```") % 2 == 0, name_of(path)


def test_the_glossary_is_sorted_and_has_each_term_once() -> None:
    terms = re.findall(r"^\| ([a-zA-Z][^|]*?) \|", (DOCS / "reference/glossary.md").read_text(), re.M)[1:]
    assert 60 <= len(terms) == len(set(terms)) and terms == sorted(terms, key=str.lower)
