"""Commands of how-to guides that are quick, run in this process, print what the pages say."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Result
from tests.docs.test_readme import EXAMPLES, sessions


@pytest.mark.timeout(600)
def test_the_commands_of_the_guide_on_masks(project: Path, cli: Callable[..., Result]) -> None:
    for photo in EXAMPLES.glob("*.jpg"):
        shutil.copy(photo, project)
    commands = sessions((REPOSITORY / "docs/how-to/masks.md").read_text())
    assert len(commands) == 2
    for command, expected in commands:
        done = cli(*shlex.split(command)[1:])
        assert (done.code, done.out) == (0, expected), done.err
    assert (project / "artifacts/mask/dog/v001/overlay.png").is_file()


@pytest.mark.parametrize("page", ["how-to/many-photos.md"])
def test_the_jobs_file_of_a_guide_is_the_example(page: str) -> None:
    """Without its comment, as docs/examples has it."""
    text = (REPOSITORY / "docs" / page).read_text()
    example = (EXAMPLES / "jobs.toml").read_text().split("\n", 1)[1]
    assert f"```toml\n{example}```" in text
