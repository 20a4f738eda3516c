"""Makefile, pre-commit, Dockerfile and templates name files and targets that exist; the changelog keeps its form."""

import re
import tomllib

import yaml

from objtune_cli import __version__
from objtune_cli.lora.file_names import FILE_NAMES, of_family
from objtune_cli.models.families import FAMILIES, Family
from objtune_cli.models.families.diffusers_pipeline import DiffusersPipeline
from tests.conftest import REPOSITORY


def read(name: str) -> str:
    return (REPOSITORY / name).read_text()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", read("Makefile"), re.M))


def test_lists_of_tests_in_the_makefile_exist() -> None:
    lists = dict(re.findall(r"^([A-Z]+) := ((?:tests/\S+|\\\n|\s)+)", read("Makefile"), re.M))
    assert set(lists) == {"FAULTS", "QUICK"}
    for paths in lists.values():
        missing = [p for p in paths.replace("\\", "").split() if not (REPOSITORY / p).exists()]
        assert not missing, missing
    assert all((REPOSITORY / p).exists() for p in re.findall(r"--ignore (tests/\S+)", read("Makefile")))


def test_make_help_lists_every_target() -> None:
    told = set(re.findall(r'echo "make ([a-z]+) ', read("Makefile")))
    assert told == targets() - {"help", "setup", "clean"}


def test_targets_that_pages_name_exist() -> None:
    for path in (
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        *(REPOSITORY / ".github").rglob("*.md"),
    ):
        named = set(re.findall(r"`make ([a-z]+)`", path.read_text()))
        assert named <= targets(), (path.name, named - targets())


def test_pre_commit_runs_what_lint_runs() -> None:
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    entries = " ".join(hook["entry"] for hook in hooks)
    lint = read("Makefile").split("\nlint:")[1].split("\n\n")[0]
    for tool in ("ruff format", "ruff check", "mypy"):
        assert f"$(BIN)/{tool}" in lint and f".venv/bin/{tool}" in entries
    for path in re.findall(r"tests/\S+\.py", entries):
        assert (REPOSITORY / path).exists(), path


def test_the_dockerfile_copies_files_that_exist_and_are_not_ignored() -> None:
    ignored = read(".dockerignore").split()
    copied = [name for line in re.findall(r"^COPY (.*)$", read("Dockerfile"), re.M) for name in line.split()[:-1]]
    assert len(copied) >= 4
    for name in copied:
        assert (REPOSITORY / name).exists() and f"!{name.removeprefix('./')}" in ignored


def test_files_that_the_contributing_guide_names_exist() -> None:
    named = set(re.findall(r"`((?:objtune_cli|tests|docs)/[^`]*)`", read("CONTRIBUTING.md")))
    assert len(named) > 15 and not [path for path in named if not (REPOSITORY / path).exists()]


def test_the_staircase_of_the_contributing_guide_is_that_of_the_imports() -> None:
    from tests.test_architecture import STAIRCASE

    figure = read("CONTRIBUTING.md").split("```text\n")[1].split("```")[0]
    steps = [line.split()[0] for line in figure.splitlines()]
    assert sorted(steps) == sorted(STAIRCASE)
    below = {step: place for place, step in enumerate(STAIRCASE)}
    depth = {line.split()[0]: len(line) - len(line.lstrip()) for line in figure.splitlines()}
    assert all(below[a] > below[b] for a in steps for b in steps if depth[a] < depth[b])


def test_templates_of_issues_can_be_read() -> None:
    forms = sorted((REPOSITORY / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    for form in forms:
        text = yaml.safe_load(form.read_text())
        assert form.name == "config.yml" or {"name", "description", "body"} <= set(text), form.name
    assert len(forms) == 4


def test_the_changelog_is_in_the_form_of_keep_a_changelog() -> None:
    """Releases, kinds of changes, and one line each."""
    lines = [line for line in read("CHANGELOG.md").splitlines() if line]
    assert lines[0] == "# Changelog"
    releases = [line for line in lines if line.startswith("## ")]
    assert re.fullmatch(r"## \[Unreleased\]", releases[0])
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in releases[1:])
    kinds = {line for line in lines if line.startswith("### ")}
    assert kinds <= {f"### {kind}" for kind in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}
    body = lines[lines.index(releases[0]) + 1 :]
    assert all(re.match(r"- [A-Z`].*\.$|##+ ", line) for line in body), [
        x for x in body if not re.match(r"- [A-Z`].*\.$|##+ ", x)
    ]


def test_pins_are_in_the_ranges_of_the_package() -> None:
    """Every package that pyproject.toml names is pinned."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in read("constraints.txt").splitlines()[1:]}
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    named = {re.split(r"[\[><=]", each)[0].lower().replace("_", "-") for each in (*project["dependencies"], *extras)}
    assert named <= pinned, named - pinned
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_members_of_a_family_are_listed() -> None:
    """CONTRIBUTING names every member that a new base family may override, and no other."""
    table = read("CONTRIBUTING.md").split("a subclass overrides what differs:\n\n")[1].split("\n\n")[0]
    listed = set(re.findall(r"`([a-z_0-9]+)`", table))
    members = {
        name for name in (*vars(Family), *vars(DiffusersPipeline), *Family.__annotations__) if not name.startswith("_")
    }
    assert listed == members - {"name", "title"}


def test_every_family_has_file_names() -> None:
    assert set(FILE_NAMES) == {family.name for family in FAMILIES}
    assert all(FILE_NAMES[family.name] is of_family(family) for family in FAMILIES)
