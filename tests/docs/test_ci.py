"""docs/how-to/ci.md: the workflow's own steps, run in order in a checkout, do what they say.

A tiny base stands in for the toybox, which `make slow` trains here; the README's test trains it in every run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from objtune_cli.workflow import job_file
from tests.conftest import REPOSITORY
from tests.support.json_schema import check

pytestmark = pytest.mark.commands

QUICK = {
    "OBJTUNE_TRAIN_MAX_STEPS": "3", "OBJTUNE_TRAIN_NUM_AUGMENTATIONS": "2", "OBJTUNE_TRAIN_SELF_EVALUATION": "false", "OBJTUNE_INIT_EMBEDDING_STEPS": "2",
    "OBJTUNE_PRIOR_NUM_CLASS_IMAGES": "2", "OBJTUNE_PRIOR_NUM_PREDICTIONS": "4", "OBJTUNE_GENERATE_NUM_INFERENCE_STEPS": "2",
}  # fmt: skip
"""Settings that only make the work short."""
NO_GATE = {f"OBJTUNE_SEGMENT_{name}": low for name, low in (("MIN_CLASS_PROBABILITY", "0"), ("MIN_SCORE_MARGIN", "-99"), ("MIN_SCORE", "-99"))}  # fmt: skip
"""A random base knows no class."""


def steps() -> list[dict[str, Any]]:
    text = (REPOSITORY / "docs" / "how-to" / "ci.md").read_text()
    workflow = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])
    return workflow["jobs"]["draw"]["steps"]


def test_the_page_names_every_key_of_a_jobs_file() -> None:
    page = (REPOSITORY / "docs" / "how-to" / "many-photos.md").read_text()
    assert [key for key in job_file.KEYS if f"`{key}`" not in page] == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", ["tiny", pytest.param("toybox", marks=pytest.mark.slow)])
def test_the_steps_of_the_workflow(project: Path, base: Path, which: str) -> None:
    shutil.copytree(REPOSITORY / "docs" / "examples", project / "docs" / "examples")
    (project / "objtune.toml").unlink()
    environment = {**os.environ, **QUICK, "GITHUB_ACTIONS": "true", "FORCE_COLOR": "1"}
    if which == "tiny":
        jobs = project / "docs" / "examples" / "jobs.toml"
        text = jobs.read_text().replace('base = "toybox"', f'base = "{base.as_posix()}"')
        assert str(base.as_posix()) in text
        jobs.write_text(text)
        environment |= NO_GATE
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = []
    for step in steps():
        if "run" not in step or step["name"] == "install":
            continue
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", step["run"]], cwd=project, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{step['name']}\n{done.stdout}\n{done.stderr}"
        assert "\x1b" not in done.stdout + done.stderr
        ran.append(step["name"])
    assert ran == ["look at the machine", "train and draw", "check every byte", "collect the pictures"]
    document = json.loads((project / "result.json").read_text())
    check(document, "output", "run")
    assert [(j["name"], j["state"]) for j in document["jobs"]] == [("rex", "done"), ("cup", "done")]
    assert len([p for p in (project / "pictures").iterdir() if "scene" in p.name]) == 6
    for line in (project / "events.ndjson").read_text().splitlines():
        check(json.loads(line), "event")
    kept = [step["with"] for step in steps() if "upload-artifact" in step.get("uses", "")]
    assert kept == [{"name": "pictures", "path": "pictures\nreport.html\n"}]
    page = (project / "report.html").read_text()
    assert 'id="adapter/rex@1"' in page and 'id="adapter/cup@1"' in page
