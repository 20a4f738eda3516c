"""The report of the self-test: what it ran on, each step, and the differences; without private paths and tokens."""

import os
import platform
import re
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from objtune_cli.errors import GateError
from objtune_cli.workflow.context import tool_versions

_TOKEN = re.compile(r"\bhf_\w+|(?i:\b(?:bearer|token|password|secret|api[_-]?key)\b[\"']?\s*[=:]?\s*)[^\s,;]{8,}")
_PATH = re.compile(r"(?<![\w.:/\\>])…?(?:[A-Za-z]:)?[\\/](?:[^\s\\/:'\"`,;()]+[\\/])*([^\s\\/:'\"`,;()]*)")


def hide_private(text: str, private: tuple[Path, ...] = (), photo: Path | None = None) -> str:
    """A message in which tokens are hidden and each absolute path is its last part behind an ellipsis.

    Args:
        private: Folders, whose names may have spaces.
        photo: A photo, whose name is hidden, too.
    """
    text = _TOKEN.sub("(hidden)", text)
    if photo is not None:
        text = text.replace(str(photo), "the photo").replace(photo.name, "the photo")
    for folder in sorted({str(each) for each in private if len(str(each)) > 1}, key=len, reverse=True):
        text = text.replace(folder, "…")
    return _PATH.sub(lambda match: f"…/{match[1]}" if len(match[0]) > 1 else match[0], text)


@dataclass(slots=True)
class SelfTestStep:
    """One step of the self-test.

    Attributes:
        state: ok, failed, or skipped after an earlier failure. peak_mb: Peak memory; 0 if the system does not report it.
        code: Exit code of its failure.
    """

    name: str
    state: str = "skipped"
    seconds: float = 0.0
    peak_mb: float = 0.0
    message: str = ""
    hint: str = ""
    code: int = 0

    def to_json(self) -> dict[str, Any]:
        """The step as `doctor --run --json` prints it; `code` is the command's exit code."""
        return {
            "name": self.name, "state": self.state, "seconds": round(self.seconds, 2), "peak_mb": round(self.peak_mb),
            "message": self.message, "hint": self.hint,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImageDifferences:
    """How far the image of plain diffusers is from ours.

    Attributes:
        mean, largest: Mean and largest absolute difference of pixel values, of 255.
        latents: Root mean square difference of the latents, fraction of theirs.
        without_object: Mean difference of our image from that of diffusers without the adapter, of 255.
        bound: Largest accepted `mean`, of 255.
    """

    mean: float
    largest: float
    latents: float
    without_object: float
    bound: float

    def require_equal(self) -> None:
        """Refuse differences that the number format does not explain.

        Raises:
            GateError: The images differ by more than the bound.
        """
        if not self.mean <= self.bound:
            raise GateError(
                f"plain diffusers draws another image: mean difference {self.mean:.2f} of 255, at most {self.bound:g} is accepted",
                "this is a bug in objtune; please report it with this report",
            )


@dataclass(slots=True)
class SelfTestReport:
    """What `doctor --run` prints."""

    photo: str
    base: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=dict)
    steps: list[SelfTestStep] = field(default_factory=list)
    differences: ImageDifferences | None = None

    @property
    def code(self) -> int:
        """Exit code: that of the first failure, else 0."""
        return next((step.code for step in self.steps if step.code), 0)

    def to_json(self) -> dict[str, Any]:
        """The report as `doctor --run --json` prints it."""
        compared = {} if self.differences is None else asdict(self.differences)
        return {
            "ok": self.code == 0, "photo": self.photo, "base": self.base, "machine": self.machine,
            "steps": [step.to_json() for step in self.steps],
            "differences": {name: round(value, 5) for name, value in compared.items()},
        }  # fmt: skip

    def to_rows(self) -> list[tuple[str, str, str, str, str]]:
        """The steps as rows: name, state, seconds, peak memory, message and hint."""
        return [
            (
                step.name,
                step.state,
                f"{step.seconds:.1f} s" if step.seconds else "",
                f"{step.peak_mb:.0f} MB" if step.peak_mb else "",
                "; ".join(filter(None, (step.message, step.hint))),
            )
            for step in self.steps
        ]

    def to_pairs(self) -> list[tuple[str, str]]:
        """What it ran on, and the differences, as rows of two."""
        sizes = {f"million parameters, {name}": size for name, size in self.base.get("million_parameters", {}).items()}
        base = {name: value for name, value in self.base.items() if name != "million_parameters"}
        about = {**base, **sizes, **self.machine, "photo": self.photo}
        rows = [(name, str(value)) for name, value in about.items() if value not in ("", 0)]
        if self.differences is not None:
            rows += [(f"difference, {name}", f"{value:.4g}") for name, value in asdict(self.differences).items()]
        return rows


def describe_machine(device: str) -> dict[str, Any]:
    """Versions, system and device of this machine, without its name or its user's."""
    import torch

    about: dict[str, Any] = dict(tool_versions())
    about |= {"python": platform.python_version(), "system": platform.platform(terse=True)}
    about |= {"processors": os.cpu_count() or 0, "threads": torch.get_num_threads(), "device": device}
    if device.startswith("cuda"):
        has = torch.cuda.get_device_properties(device)
        about |= {"gpu": has.name, "gpu_memory_gb": round(has.total_memory / 1e9, 1), "cuda": torch.version.cuda or ""}
    return about


def private_folders(*others: Path) -> tuple[Path, ...]:
    """The folders of this machine whose names no report should hold."""
    return (*others, Path.home(), Path.cwd(), Path(tempfile.gettempdir()))
