"""One method on one object: train by the real command in a process of its own, draw, read, score, keep."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from objtune_cli.bench import photo_variants
from objtune_cli.bench.methods import Method
from objtune_cli.config.resolve import PREFIX
from objtune_cli.config.sections import Embed, Prior, Train, identifying
from objtune_cli.errors import ObjtuneError, ResourceError, Stopped
from objtune_cli.evaluation import rendering, truth_scores
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.images import png
from objtune_cli.store import artifacts
from objtune_cli.store.refs import parse
from objtune_cli.store.safetensors_format import canonical
from objtune_cli.toybox import world
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import Dial
from objtune_cli.training import stage as train
from objtune_cli.workflow.context import StageContext, tools

FORMAT = 2
"""Grows when the measures, or what one setting means to training, change."""
SHOWN = 4
"""Pictures of each trial kept for the sheet."""


@dataclass(frozen=True, slots=True)
class Handed:
    """What a training is given: the object's name and class word, its photo (H, W, 3) and mask (H, W), uint8."""

    name: str
    kind: str
    rgb: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, slots=True)
class Trained:
    """What the training process left: the adapter's tensors, wall seconds, and its largest resident memory."""

    weights: Mapping[str, Any]
    seconds: float
    memory_mb: float


class Failed(ObjtuneError):
    """A training process ended with an error of its own, or by a signal that nobody here sent."""

    def __init__(self, method: str, case: Case | Handed, code: int, said: str) -> None:
        killed = code < 0
        how = f"was ended by signal {-code}" if killed else f"failed: {said}"
        super().__init__(f"{method} on {case.name} {how}", "is there enough memory?" if killed else "")
        self.code = ResourceError.code if killed else code or 1


@functools.cache
def judge() -> str:
    """Digest of the evaluator's weights: another evaluator, another result."""
    return hashlib.sha256(inference.WEIGHTS.read_bytes()).hexdigest()


def key(ctx: StageContext, case: Case, name: str, method: Method, seed: int) -> str:
    """What a result depends on; a kept one with another key is measured again."""
    about = settings(ctx, name, method) | {"format": FORMAT, "case": repr(case), "seed": seed, "judge": judge()}
    if method.given != "exact":
        about["given"] = method.given
    if method.hint != "mask":
        about["hint"] = method.hint
    return hashlib.sha256(canonical(about).encode()).hexdigest()


def settings(ctx: StageContext, name: str, method: Method) -> dict[str, Any]:
    """What any result of a method depends on: its settings, the base, and what computes."""
    about: dict[str, Any] = {
        "method": name, "embed": identifying(replace(Embed(), **method.embed)),
        "train": identifying(train.fill_defaults(replace(Train(), **method.train), ctx.base.training)), "prior": identifying(replace(Prior(), **method.prior)),
        "base": ctx.base.fingerprint, "sampling": rendering.plainly(ctx.base), "device": ctx.common.device, "precision": ctx.common.precision, "tools": tools(),
    }  # fmt: skip
    drawn = method.guidances(ctx.base)
    guidances = {f"{name}_guidance": drawn[name] for name in ("scene", "own") if drawn[name]}
    guidances |= {"object_below": drawn["object_below"]} if drawn["object_below"] < 1 else {}
    return about | ({"tower": ctx.base.tower} if ctx.base.tower else {}) | guidances


def run(
    ctx: StageContext,
    network: Evaluator,
    case: Case,
    name: str,
    method: Method,
    scale: truth_scores.Scale,
    before: list,
    trainings: dict[str, Trained],
) -> tuple[dict[str, float], np.ndarray]:
    """Measures of one method on one object, and its pictures in the order of the prompts.

    Args:
        before: Readings of the class as the base draws it. trainings: What was learned of this object so far: what differs only in how it is drawn is learned once.
    """
    about = canonical({**method.learning(), "given": method.given, "hint": method.hint})
    if about not in trainings:
        trainings[about] = _train(ctx, case, name, method)
    trained = trainings[about]
    model, words = rendering.loaded(ctx, case.name, trained.weights, case.instance.kind)
    shown = rendering.asked(ctx, model, words, case, f"<{case.name}>", **method.guidances(ctx.base))
    after = rendering.readings(network, rendering.of_class(ctx, model, case.instance.kind))
    found = truth_scores.score(case, scale, rendering.readings(network, shown))
    found |= truth_scores.drift(scale, case.instance.kind, before, after)
    cost = {"seconds": trained.seconds} | ({"memory_mb": trained.memory_mb} if trained.memory_mb else {})
    return found | cost, shown


def _train(ctx: StageContext, case: Case, name: str, method: Method) -> Trained:
    """What a method learns of an object, handed in the method's way."""
    return learned(ctx, Handed(case.name, case.instance.kind, *photo_variants.photo(case, method.given)), name, method)


def learned(ctx: StageContext, handed: Handed, name: str, method: Method) -> Trained:
    """`objtune train` on the photo with the mask it is handed, nothing of an earlier trial left to reuse but the class prior.

    Raises:
        Failed: It ended with an error. Stopped: a signal came.
    """
    folder = ctx.project.folder
    with artifacts.explained(folder):
        for kind in ("mask", "embedding", "adapter"):
            if (ctx.root / kind).exists():
                shutil.rmtree(ctx.root / kind)
        for state in ctx.project.states.glob("*.safetensors"):
            state.unlink()
    with artifacts.explained(folder), tempfile.TemporaryDirectory(dir=folder) as place:
        photo, mask = Path(place) / "photo.png", Path(place) / "mask.png"
        photo.write_bytes(png.encode_png(handed.rgb))
        mask.write_bytes(png.encode_png(handed.mask))
        said = {f"{part}.{key}": value for part, values in method.learning().items() for key, value in values.items()}
        said |= {"tower": ctx.common.tower} if ctx.common.tower else {}
        command = [
            sys.executable, "-P", "-m", "objtune_cli", "train", str(photo), f"--{method.hint}", str(mask),
            "--class", handed.kind, "--name", handed.name, "--no-preview", "--json", "--project", str(folder),
            "--base", ctx.common.base, "--device", ctx.common.device, "--precision", ctx.common.precision,
            *(word for k, v in said.items() for word in ("--set", f"{k}={v}")),
        ]  # fmt: skip
        document, seconds, memory = measured(ctx, command, f"{name} on {handed.name}")
    if "error" in document:
        raise Failed(name, handed, int(document["error"]["code"]), document["error"]["message"])
    import torch

    _, arrays = artifacts.load(ctx.root, parse(document["refs"][-1]["ref"]), document["refs"][-1]["sha256"])
    return Trained({k: torch.from_numpy(v.copy()) for k, v in arrays.items()}, seconds, memory)


def measured(ctx: StageContext, command: list[str], label: str) -> tuple[dict[str, Any], float, float]:
    """Run a command of ours to its end: its JSON, wall seconds, largest resident memory in MB (0 where the system hides it).

    Raises:
        Stopped: A signal came; the command has been ended too.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}  # a method is what its settings say
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            command, stdout=out, stderr=said, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        memory = 0.0
        while child.poll() is None and not ctx.stopped():
            memory = max(memory, _peak(child.pid))
            time.sleep(0.1)
        if child.poll() is None:
            child.terminate()
            child.wait()
            raise Stopped(
                ctx.stopped(),
                f"stopped during {label}; finished objects are kept",
                "the same command goes on from there",
            )
        out.seek(0), said.seek(0)
        text = out.read().decode(errors="replace")
        try:
            document = json.loads(text)
        except ValueError:
            lines = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            document = {"error": {"code": child.returncode, "message": lines[-1]}}
    return document, time.monotonic() - started, memory


def _peak(pid: int) -> float:
    """Largest resident memory of a running process so far, MB; its parent's does not count, as it would in `ru_maxrss`."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0.0)


def strip(case: Case, shown: np.ndarray) -> np.ndarray:
    """The pictures kept for the sheet: the first scenes, then one of each other kind."""
    kinds = [p.kind for p in case.prompts]
    chosen = [i for i, k in enumerate(kinds) if k == "scene"][: SHOWN - 1]
    chosen += [kinds.index(k) for k in ("wearing", "pair") if k in kinds]
    return shown[chosen[:SHOWN]]


def truth(
    network: Evaluator, case: Case, dial: Dial, scale: truth_scores.Scale, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """The object drawn again by the world, scored as a method is: what 1 looks like, with its spread."""
    shown = rendering.drawn([p.truth(case.instance, dial, seed + 2) for p in case.prompts])
    return truth_scores.score(case, scale, rendering.readings(network, shown)), shown


def stranger(
    network: Evaluator, case: Case, dial: Dial, scale: truth_scores.Scale, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """Another instance of the class in the object's place: what 0 of identity looks like, with its spread."""
    other = world.sample_instance(case.generator(seed, 2), dial, kind=case.instance.kind, held_out=None)
    return truth(network, replace(case, instance=other), dial, scale, seed)


def decoded(
    ctx: StageContext, network: Evaluator, case: Case, dial: Dial, scale: truth_scores.Scale, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """The true pictures through the base's autoencoder: no method on this base can be nearer to the truth."""
    import torch

    from objtune_cli.generation.sampling import to_uint8

    model = ctx.load_base_model()
    true = torch.from_numpy(rendering.drawn([p.truth(case.instance, dial, seed + 2) for p in case.prompts]))
    small = torch.nn.functional.interpolate(
        true.permute(0, 3, 1, 2).float(), size=(model.size, model.size), mode="area"
    )
    shown = to_uint8(model.to_picture(model.to_latent(small / 127.5 - 1))).numpy()
    return truth_scores.score(case, scale, rendering.readings(network, shown)), shown


def described(
    ctx: StageContext, network: Evaluator, case: Case, scale: truth_scores.Scale
) -> tuple[dict[str, float], np.ndarray]:
    """The base alone, told the object in words: what no training gives."""
    model, words = rendering.loaded(ctx, case.name, None)
    shown = rendering.asked(ctx, model, words, case, rendering.worded(case))
    return truth_scores.score(case, scale, rendering.readings(network, shown)), shown
