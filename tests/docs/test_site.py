"""`make docs`: the site builds without a warning, with the API from the docstrings."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """A broken link or anchor, a page outside the navigation or a docstring that cannot be read fails."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "site/reference/api.html").read_text()
    assert api.count('class="doc doc-object doc-function"') >= 8 and ":::" not in api
    assert not (tmp_path / "site/build_reference.py").exists()
