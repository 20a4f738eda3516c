"""What every test may use: a project in a temporary folder, the command line in this process, a photo."""

import gc
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.fault_report import pytest_terminal_summary, say  # noqa: F401  (a hook and a fixture)

pytest_plugins = ["tests.support.fixtures"]

REPOSITORY = Path(__file__).resolve().parent.parent
COLOUR = ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "CLICOLOR_FORCE")


LONG = (
    "e2e/test_cli_tiny_base.py",
    "docs/test_readme.py",
    "training/test_train_many.py",
    "composition/test_compose_stage.py",
    "segmentation/test_segment_stage.py",
    "training/test_baselines.py",
    "training/test_parallel_trainers.py",
    "docs/test_ci.py",
    "faults/test_training_faults.py",
    "training/test_resume.py",
    "training/test_trainer.py",
    "e2e/test_cli_families.py",
    "bench/test_objects_suite.py",
    "interchange/test_hub.py",
)
"""Modules that take longest; begun last, one of them would keep a process at work while the other has nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long modules first, everything else in its order."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get("/".join(item.path.parts[-2:]), len(LONG)))


gc.set_threshold(200_000, 50, 1000)
# The collector would go through the libraries' two million objects again and again, and find nothing.

settings.register_profile("same", derandomize=True, database=None)
settings.load_profile("same")
# The same examples in every run: what is red here is red everywhere. `make properties` looks for others.


@dataclass(frozen=True)
class Result:
    """What one command line did: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project as the working folder; home, caches and settings of the machine out of reach."""
    for name in [n for n in os.environ if n.startswith("OBJTUNE_") or n in COLOUR]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    for name, folder in {
        "HOME": ".",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "XDG_DATA_HOME": "data",
        "HF_HOME": "hf",
    }.items():
        (home / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(name, str(home / folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "objtune.toml").write_text("")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cli(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`cli("list", "--json", stdin="")`: runs objtune in this process, inside `project`."""
    from objtune_cli.cli.app import run
    from objtune_cli.cli.signals import HANDLED

    def call(*args: object, stdin: str | bytes = "") -> Result:
        lines = io.StringIO(stdin) if isinstance(stdin, str) else io.TextIOWrapper(io.BytesIO(stdin))
        monkeypatch.setattr("sys.stdin", lines)
        capsys.readouterr()
        kept = {number: signal.getsignal(number) for number in HANDLED}
        try:
            code = run([str(a) for a in args])
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture(scope="session")
def dog_photo() -> Path:
    """The example photo of the repository: a drawn dog."""
    return REPOSITORY / "docs" / "examples" / "photo.jpg"
