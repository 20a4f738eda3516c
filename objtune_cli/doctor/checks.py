"""What `doctor` looks at: versions, memory, device, bases, models, store; each with the command that brings what is missing."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from objtune_cli import paths
from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import Segment
from objtune_cli.errors import ObjtuneError
from objtune_cli.models import hub_cache, needed_models, registry, segmenter_lookup
from objtune_cli.models.base_spec import BaseSpec
from objtune_cli.store import garbage
from objtune_cli.store.project import Project

PACKAGES = ("objtune", "torch", "torchvision", "diffusers", "transformers", "peft", "safetensors", "numpy", "Pillow")
MIN_FREE_GB = 2.0
"""GB of free disk or memory below which a person should know."""
LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "peft", "safetensors.torch", "cv2")
"""What `check_libraries` imports."""
INSTALL_TORCH = "pip install torch"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `state`: ok, missing (an option that is not there), or bad (work will fail)."""

    what: str
    state: str
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, str]:
        """The check as `doctor --json` prints it."""
        return {"what": self.what, "state": self.state, "said": self.detail, "remedy": self.remedy}


def run_checks(project: Project, base: str = "") -> list[Check]:
    """All that needs no torch.

    Args:
        base: List what this base model needs instead of all base models and the models of `evaluate`.
    """
    return [
        *_check_packages(),
        _check_memory(),
        _check_disk(project.folder if project.remote is None else Path(tempfile.gettempdir())),
        *(_check_base(base) if base else [*_check_bases(), *_check_models(project)]),
        *_check_store(project),
    ]


def check_libraries() -> Check:
    """Import every library that a training run uses."""
    try:
        from objtune_cli.runtime import torchvision_compat

        torchvision_compat.complete()
    except Exception as error:  # a broken install fails in many ways
        return Check("libraries", "bad", f"torch cannot be imported: {_first_line(error)}", INSTALL_TORCH)
    for name in LIBRARIES:
        try:
            import_module(name)
        except Exception as error:  # a broken install fails in many ways
            package = {"cv2": "opencv-python-headless"}.get(name, name.partition(".")[0])
            detail = f"{name} cannot be imported: {_first_line(error)}"
            return Check("libraries", "bad", detail, f"pip install --force-reinstall {package}")
    return Check("libraries", "ok", f"{', '.join(LIBRARIES)} can be imported")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_devices() -> list[Check]:
    """What torch can compute on."""
    try:
        import torch
    except Exception as error:  # a broken install fails in many ways
        return [Check("device", "bad", f"torch cannot be loaded: {error}", INSTALL_TORCH)]
    results = [_check_device("cpu", f"{torch.get_num_threads()} threads of {os.cpu_count()} processors")]
    for i in range(torch.cuda.device_count()):
        has = torch.cuda.get_device_properties(i)
        results.append(_check_device(f"cuda:{i}", f"{has.name}, {has.total_memory / 1e9:.0f} GB"))
    if torch.backends.mps.is_available():
        results.append(_check_device("mps", "Apple GPU"))
    if len(results) == 1:
        results.append(
            Check(
                "gpu",
                "missing",
                "torch finds none",
                "the toybox needs none; Stable Diffusion bases are slow without one",
            )
        )
    return results


def _check_device(name: str, detail: str) -> Check:
    """Run one tiny training step on a device in each number format; fp32 must work."""
    from objtune_cli.runtime import tiny_step

    failures = {key: tiny_step.find_failure(name, dtype) for key, dtype in tiny_step.FORMATS.items()}
    working = ", ".join(key for key, failure in failures.items() if not failure)
    if failures["fp32"]:
        return Check(name, "bad", f"{detail}; a training step fails: {failures['fp32']}", INSTALL_TORCH)
    failing = "".join(f"; {key} fails: {failure}" for key, failure in failures.items() if failure)
    return Check(name, "ok", f"{detail}; a training step works in {working}{failing}")


def _check_base(name: str) -> list[Check]:
    """What one base model needs for a run on photographs, each with the command that brings it."""
    is_fetched = name in hub_cache.HUB_REPOSITORIES or paths.is_hub_id(name)
    family, base = needed_models.family_of(name), None
    try:
        base = registry.resolve(name)
        results = [Check(f"base {name}", "ok", str(base.folder))]
        family = base.family
    except ObjtuneError as error:
        results = [
            Check(f"base {name}", "bad", error.message, f"objtune fetch --base {name}" if family else error.hint)
        ]
    if family is None:
        return results
    for each in needed_models.companions(family, base.folder if base else None, with_metrics=True):
        option = " --with-metrics" if each.for_metrics else ""
        command = f"objtune fetch --base {name}{option}" if is_fetched else f"objtune fetch --model {each.repository}"
        if each.what == "segmenter":
            results.append(_check_segmenter(base, each, command))
            continue
        here = "" if each.folder is None else str(each.folder)
        detail = here or f"{each.repository} is not on this machine"
        what = f"{each.what} {each.number}".strip()
        results.append(Check(what, "ok" if here else "missing", detail, "" if here else command))
    return results


def _check_segmenter(base: BaseSpec | None, needed: needed_models.NeededModel, command: str) -> Check:
    if base is not None and base.toybox_dial:
        return Check("segmenter", "ok", str(registry.TOYBOX_SEGMENTER))
    best = segmenter_lookup.find_best()
    if best is not None:
        return Check("segmenter", "ok", f"{best.label}: {best.folder}")
    detail = f"{needed.repository} is not on this machine; the embedded one knows only drawings"
    return Check("segmenter", "missing", detail, command)


def _check_packages() -> list[Check]:
    results = []
    for name in PACKAGES:
        try:
            results.append(Check(name, "ok", version(name)))
        except PackageNotFoundError:
            results.append(Check(name, "bad", "not installed", f"pip install {name}"))
    return results


def _check_memory() -> Check:
    """What the system says is available; Linux only."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        free, total = kilobytes["MemAvailable"] / 1e6, kilobytes["MemTotal"] / 1e6
    except (OSError, KeyError, ValueError, IndexError):
        return Check("memory", "ok", "not reported by this system")
    return Check(
        "memory",
        "ok" if free > MIN_FREE_GB else "bad",
        f"{free:.1f} GB free of {total:.1f}",
        "" if free > MIN_FREE_GB else "close other programs",
    )


def _check_disk(folder: Path) -> Check:
    here = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(here).free / 1e9
    return Check(
        "disk",
        "ok" if free > MIN_FREE_GB else "bad",
        f"{free:.1f} GB free at {folder}",
        "" if free > MIN_FREE_GB else "`objtune gc` deletes what nothing uses",
    )


def _check_bases() -> list[Check]:
    results = []
    for name in ("toybox", *hub_cache.HUB_REPOSITORIES):
        try:
            results.append(Check(f"base {name}", "ok", str(registry.resolve(name).folder)))
        except ObjtuneError as error:
            results.append(Check(f"base {name}", "missing", error.message, error.hint))
    return results


def _check_models(project: Project) -> list[Check]:
    """The segmenter of these settings, and what judges photographs."""
    checkpoint = Settings(project.settings).resolve(Segment).sam_checkpoint
    place = Path(checkpoint) if checkpoint else registry.TOYBOX_SEGMENTER
    fine = place.exists()
    state, remedy = (
        ("ok", "")
        if fine
        else (
            "bad",
            "correct `segment.sam_checkpoint` in objtune.toml"
            if checkpoint
            else "pip install --force-reinstall objtune",
        )
    )
    return [
        Check("segmenter", state, str(place) if fine else f"there is no {place}", remedy),
        *(_check_cached(n, r) for n, r in needed_models.METRIC_MODELS.items()),
    ]


def _check_cached(name: str, repository: str) -> Check:
    folder = hub_cache.find_transformers_model(repository)
    if folder is None:
        return Check(
            name,
            "missing",
            f"{repository} is not on this machine; `evaluate` on photographs needs it",
            f"objtune fetch --model {repository}",
        )
    return Check(name, "ok", str(folder))


def _check_writable(project: Project) -> Check:
    if project.remote is None:
        writable = os.access(project.folder, os.W_OK)
        remedy = "" if writable else "it cannot be written; check its owner and mode"
        return Check("project", "ok" if writable else "bad", str(project.folder), remedy)
    try:
        project.remote.check_writable("")
    except ObjtuneError as error:
        return Check("project", "bad", error.message, error.hint)
    return Check("project", "ok", project.location)


def _check_store(project: Project) -> list[Check]:
    """Whether there is a project, may be written, and every header can be read; `verify` reads every byte."""
    if not project.settings.exists():
        return [Check("project", "missing", f"{project.location} is not a project yet", "objtune init")]
    results = [_check_writable(project)]
    every = project.store.list()
    broken = []
    for ref in every:
        try:
            project.store.read_record(ref)
        except ObjtuneError as error:
            broken.append(error)
    detail = broken[0].message if broken else f"{len(every)} artifacts, all headers valid"
    results.append(Check("store", "bad" if broken else "ok", detail, broken[0].hint if broken else ""))
    left = garbage.find_garbage(project.store, 0)
    results.append(
        Check(
            "leftovers",
            "missing" if left else "ok",
            f"{len(left)} files of killed commands",
            "objtune gc" if left else "",
        )
    )
    return results
