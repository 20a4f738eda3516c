"""The context that every stage receives, and the result that it returns."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import Common
from objtune_cli.errors import IncompatibleError, ObjtuneError, Stopped
from objtune_cli.models import registry
from objtune_cli.models.base_spec import BaseSpec
from objtune_cli.store.artifacts import Record
from objtune_cli.store.project import Project
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.workflow import base_compatibility
from objtune_cli.workflow.reporting import Reporter

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.runtime.distributed import ProcessGroup

T = TypeVar("T")


@dataclass(slots=True)
class StageResult:
    """One result of a stage."""

    ref: Ref
    reused: bool = False
    images: list[Path] = field(default_factory=list)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TypedCommand:
    """A command line: its words without `objtune`, and the folder in which it was typed."""

    words: tuple[str, ...]
    folder: str


@dataclass(slots=True)
class StageContext:
    """Project, settings and one loaded base for all stages of a command.

    Attributes:
        inpainting: Whether the base may be an inpainting model.
        command: What resumes an interrupted run, if a command line does.
    """

    project: Project
    settings: Settings
    common: Common
    report: Reporter
    force: bool = False
    stopped: Callable[[], int] = lambda: 0
    inpainting: bool = False
    command: TypedCommand | None = None
    _base: BaseSpec | None = None
    _noted: set[str] = field(default_factory=set)
    _rejected: set[Ref] = field(default_factory=set)

    @property
    def store(self) -> Store:
        """The project's artifacts."""
        return self.project.store

    @property
    def base(self) -> BaseSpec:
        """The description of the base model; no weights are loaded."""
        if self._base is None:
            common = self.common
            self._base = registry.resolve(
                common.base,
                common.clip_model,
                common.vae,
                common.prediction_type,
                common.base_parts,
                inpainting=self.inpainting,
            )
        return self._base

    def note_once(self, text: str) -> None:
        """Report a note, unless an earlier stage of the command reported the same."""
        if text not in self._noted:
            self._noted.add(text)
            self.report.note(text)

    def load_base_model(self, *, train: bool = False) -> "BaseModel":
        """Load the base; every call loads a new one, because stages add words and adapters to it.

        Args:
            train: Whether gradients will flow. Then `--precision auto` does not choose fp16, in which they vanish, and
                a CPU with bf16 products uses them inside the denoiser, with float32 inputs and outputs.
        """
        self.check_stopped()
        from objtune_cli.models import loading, precision
        from objtune_cli.runtime import devices, memory

        team = self.team() if train else None
        device = team.device if team else devices.pick_device(self.common.device)
        if self.common.device == "auto" and device.type == "cpu" and (reason := devices.explain_no_gpu()):
            self.note_once(reason)
        dtype = loading.pick_dtype(self.common.precision, device)
        if train and self.common.precision == "auto" and dtype == loading.PRECISIONS["fp16"]:
            dtype = loading.PRECISIONS["fp32"]
        memory.empty_cache(device.type)  # frees the base of the stage before
        base = self.base
        loaded = loading.load(base.folder, device, dtype, base.weights, base.prediction_override, base.vae)
        for note in (*base.notes, *loaded.notes):
            self.note_once(note)
        if train and self.common.precision == "auto" and device.type == "cpu" and precision.processor_has_bf16():
            precision.use_bf16_matmuls(loaded.denoiser)
        loaded.process_group, loaded.note = team, self.report.note
        return loaded

    def tools(self, model: "BaseModel") -> dict[str, str]:
        """The `tools` of a record: versions, and the denoiser's number format if it is not float32."""
        from objtune_cli.models.finite_checks import HALF

        used = HALF.get(next(model.denoiser.parameters()).dtype, "") or HALF.get(model.dtype, "")
        prefix = "auto " if self.common.precision == "auto" else ""
        return tool_versions() | ({"precision": prefix + used} if used else {})

    def _computed(self, wanted: Record) -> Ref | None:
        """Find finished work in the selected number format; records of float32 and of earlier versions have no format."""
        precision = self.common.precision
        if precision == "auto":  # artifacts of `auto` come first, because those without a format may be of fp32
            auto = self._find(wanted, lambda record: record.tools.get("precision", "").startswith("auto "))
            return auto or self._find(wanted, lambda record: "precision" not in record.tools)
        return self._find(
            wanted, lambda record: record.tools.get("precision", "fp32").removeprefix("auto ") == precision
        )

    def _find(self, wanted: Record, accepts: Callable[[Record], bool] = lambda record: True) -> Ref | None:
        """Find the newest work with the identity of `wanted` that `accepts` is true of, and that was not rejected."""
        return self.store.find_identical(wanted, lambda record: record.ref not in self._rejected and accepts(record))

    def team(self) -> "ProcessGroup | None":
        """The processes that a launcher started for this command; None if there is only one."""
        from os import environ

        size = environ.get("WORLD_SIZE", "")
        if not size.isdecimal() or int(size) < 2:
            return None
        if not {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"} & set(
            environ
        ):  # the variables come from a cluster, not from a launcher
            self.note_once(
                f"waits at {environ.get('MASTER_ADDR')}:{environ.get('MASTER_PORT')} for {int(size) - 1} more processes (WORLD_SIZE is {size}); unset WORLD_SIZE for one alone"
            )
        from objtune_cli.runtime import distributed

        return distributed.join_process_group(self.common.device)

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the body in the main process, then in the others, which find its results."""
        team = self.team()
        with team.main_process_first() if team else contextlib.nullcontext():
            yield

    def can_run_parallel(self) -> bool:
        """Whether several copies of the base may run in threads: only a small base, on a CPU."""
        from objtune_cli.runtime import devices

        return (
            self.team() is None
            and self.base.fits_twice_in_memory
            and devices.pick_device(self.common.device).type == "cpu"
        )

    def run_parallel(self, work: Sequence[Callable[[], T]]) -> list[T]:
        """Call all functions, in parallel threads if processors are free, and return their results in order."""
        if len(work) < 2 or not self.can_run_parallel():
            return [each() for each in work]
        from objtune_cli.runtime import cpu

        return cpu.run_parallel(work)

    def without_force(self) -> "StageContext":
        """Copy the context without `--force`, for earlier stages that may reuse their results."""
        return replace(self, force=False)

    def progress(self, stage: str) -> Callable[..., None]:
        """A callback that reports the steps of long work, and raises after a signal."""

        def step(done: int, total: int, **values: float) -> None:
            self.report.step(stage, done, total, **values)
            self.check_stopped()

        return step

    def check_stopped(self) -> None:
        """Raise after a signal.

        Raises:
            Stopped: Has the signal's number.
        """
        if self.stopped():
            raise Stopped(self.stopped(), "stopped", "the same command resumes where it stopped")

    def find(self, wanted: Record, *, computed: bool = False) -> Ref | None:
        """Find finished work with the identity of `wanted`, the newest without NaN and infinity; None if there is none.

        Args:
            computed: Whether the denoiser computed it, so that its number format counts.
        """
        while ref := self._computed(wanted) if computed else self._find(wanted):
            bad = self.store.find_bad_tensor(ref)
            if not bad:
                return ref
            self.report.note(f"{ref} is not used again: {bad} contains NaN or infinite values")
            self.reject(ref)
        return None

    def reject(self, ref: Ref) -> None:
        """Exclude an artifact from reuse, so that `publish` makes a new version of the same work."""
        self._rejected.add(ref)

    def publish(self, record: Record, tensors: Mapping[str, Any]) -> Ref:
        """Publish an artifact; equal work that others published in the meantime is reused, unless `--force` is given."""
        if self.force:
            return self.store.create(record, tensors)
        precision = record.tools.get("precision")

        def is_equal(other: Record) -> bool:
            return other.tools.get("precision") == precision and other.ref not in self._rejected

        return self.store.create(record, tensors, accepts=is_equal)

    def find_existing(self, wanted: Record, *, computed: bool = False) -> StageResult | None:
        """The finished work as a result with its images and metrics; None with `--force` or without such work."""
        ref = None if self.force else self.find(wanted, computed=computed)
        if ref is None:
            self.store.check_writable(wanted.kind, wanted.name)
            return None
        self.report.note(f"{ref} is up to date")
        record = self.store.read_record(ref)
        return StageResult(ref, True, list(self.store.list_images(ref)), record.metrics)

    def input_record(self, ref: Ref) -> dict[str, str]:
        """Check an artifact's bytes and return its entry for the `inputs` of another."""
        return {"ref": str(ref), "sha256": self.store.verify(ref)[1]}

    def _added_settings(self, record: Record) -> str:
        """The settings that alone distinguish this command's base from that of an artifact; "" if the bases differ otherwise."""
        common = self.common
        added = " and ".join(f"`{key}`" for key in ("vae", "prediction_type") if getattr(common, key))
        with contextlib.suppress(ObjtuneError):
            if added and registry.resolve(common.base, common.clip_model).fingerprint == record.base.get("fingerprint"):
                return added
        return ""

    def check_base(self, record: Record, *, for_images: bool = False) -> None:
        """Refuse an artifact made with another base.

        Args:
            for_images: Whether it is only used to sample images; then another compatible base is allowed, with a note.

        Raises:
            IncompatibleError: Names both.
        """
        if not record.base or record.base.get("fingerprint") == self.base.fingerprint:
            return
        mine, theirs = self.base.id, record.base.get("id", "?")
        added = self._added_settings(record)
        same = (
            f" with the setting {added}"
            if added
            else " (same name, other weights or configs)"
            if mine == theirs
            else ""
        )
        why = base_compatibility.explain_incompatible(self.base, self.store, record) if for_images else ""
        if for_images and not why and not self.common.strict_base:
            self.note_once(
                f"{record.ref} was learned on the base {theirs} and is drawn on {mine}{same}, another base of {self.base.family.title}; `--strict-base` refuses this"
            )
            return
        if added:
            raise IncompatibleError(
                f"{record.ref} was made with the base {theirs}, this command uses it{same}",
                f"leave the setting {added} out, or make it again",
            )
        again = registry.suggest_base_option(
            record.base, self.base.folder.parent, self.project.folder, self.project.folder.parent
        )
        raise IncompatibleError(
            f"{record.ref} was made with the base {theirs}, this command uses {mine}{same}"
            + (f": {why}" if why else ""),
            f"add {again}, or make it again",
        )


def tool_versions() -> dict[str, str]:
    """Versions of the libraries that compute; stored in records, but not part of their identity."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "objtune")}
