"""One method on one object: train it by the command `objtune train` in a process, sample images and score them."""

import functools
import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from objtune_cli.bench import command_runner, photo_variants
from objtune_cli.bench.methods import Method, former_name
from objtune_cli.config.sections import Embed, Prior, Train, identifying
from objtune_cli.evaluation import rendering, truth_scores
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.images import png
from objtune_cli.renamed_settings import former
from objtune_cli.store import disk_errors
from objtune_cli.store.checkpoints import STATES
from objtune_cli.store.refs import ARTIFACTS, parse
from objtune_cli.store.safetensors_format import canonical_json
from objtune_cli.toybox import world
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import DIALS, Dial
from objtune_cli.training import train
from objtune_cli.workflow.context import StageContext, tool_versions

HINT_OPTIONS = {"mask": "--mask", "rough": "--refine-mask"}
"""Option of `train` for each use of a mask."""
FORMAT = 2
"""Version of the results; it is increased when measures, or the meaning of a setting for training, change."""
SHEET_IMAGES = 4
"""Images of each training in the contact sheet."""


@dataclass(frozen=True, slots=True)
class TrainingInput:
    """Input of a training.

    Attributes:
        name, kind: The object's name and class word. rgb: Its photo (H, W, 3) uint8. mask: (H, W) uint8.
        further: Further photos of the object, each with its mask.
    """

    name: str
    kind: str
    rgb: np.ndarray
    mask: np.ndarray
    further: tuple[photo_variants.Photo, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Result of a training: the adapter's tensors, wall seconds, and the process's largest resident memory, MB."""

    weights: Mapping[str, Any]
    seconds: float
    memory_mb: float


@functools.cache
def evaluator_digest() -> str:
    """Digest of the evaluator's weights, on which results depend."""
    return hashlib.sha256(inference.WEIGHTS.read_bytes()).hexdigest()


def result_key(ctx: StageContext, case: Case, name: str, method: Method, seed: int) -> str:
    """Digest of everything that a result depends on; a cached result with another key is measured again."""
    inputs = result_inputs(ctx, name, method) | {
        "format": FORMAT,
        "case": repr(case),
        "seed": seed,
        "judge": evaluator_digest(),
    }
    if method.photo_variant != "exact":
        inputs["given"] = method.photo_variant
    if method.hint != "mask":
        inputs["hint"] = method.hint
    if method.num_photos > 1:
        inputs["photos"] = method.num_photos
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()


def result_inputs(ctx: StageContext, name: str, method: Method) -> dict[str, Any]:
    """The inputs of every result of a method: its settings, the base, the device and the versions of libraries."""
    inputs: dict[str, Any] = {
        "method": former_name(name), "embed": former("init-embedding", identifying(replace(Embed(), **method.embed))),
        "train": former("train", identifying(train.fill_defaults(replace(Train(), **method.train), ctx.base.training))),
        "prior": former("prior", identifying(replace(Prior(), **method.prior))),
        "base": ctx.base.fingerprint, "sampling": former("generate", rendering.base_sampling(ctx.base)), "device": ctx.common.device, "precision": ctx.common.precision, "tools": tool_versions(),
    }  # fmt: skip
    inputs |= {"tower": ctx.base.clip_model} if ctx.base.clip_model else {}
    sampling = method.sampling_kwargs(ctx.base)
    if sampling["prompt_guidance_scale"]:
        inputs["scene_guidance"] = sampling["prompt_guidance_scale"]
    if sampling["autoguidance_scale"]:
        inputs["own_guidance"] = sampling["autoguidance_scale"]
    if sampling["subject_conditioning_start"] < 1:
        inputs["object_below"] = sampling["subject_conditioning_start"]
    return inputs


def score_method(
    ctx: StageContext,
    network: Evaluator,
    case: Case,
    name: str,
    method: Method,
    scale: truth_scores.Calibration,
    before: list[Any],
    trainings: dict[str, TrainingResult],
) -> tuple[dict[str, float], np.ndarray]:
    """Measures of one method on one object, and its images in the order of the prompts.

    Args:
        before: Readings of the class's images of the base alone.
        trainings: Trainings of this object so far, by their settings; methods that differ only in sampling share one.
    """
    photos = {"given": method.photo_variant, "hint": method.hint, "photos": method.num_photos}
    settings_key = canonical_json({**method.training_settings(), **photos})
    if settings_key not in trainings:
        trainings[settings_key] = _train_case(ctx, case, name, method)
    trained = trainings[settings_key]
    model, words = rendering.load_adapter(ctx, case.name, trained.weights, case.instance.kind)
    images = rendering.sample_case(ctx, model, words, case, f"<{case.name}>", **method.sampling_kwargs(ctx.base))
    after = rendering.read_images(network, rendering.sample_class(ctx, model, case.instance.kind))
    scores = truth_scores.score(case, scale, rendering.read_images(network, images))
    scores |= truth_scores.score_drift(scale, case.instance.kind, before, after)
    cost = {"seconds": trained.seconds} | ({"memory_mb": trained.memory_mb} if trained.memory_mb else {})
    return scores | cost, images


def _train_case(ctx: StageContext, case: Case, name: str, method: Method) -> TrainingResult:
    """Train an object with a method, from the method's variant of the photo and as many photos as it takes."""
    rgb, mask = photo_variants.make_photo(case, method.photo_variant)
    further: tuple[photo_variants.Photo, ...] = ()
    if method.num_photos > 1:
        dial = DIALS[ctx.base.toybox_dial]
        further = tuple(photo_variants.make_further_photos(case, dial, method.num_photos - 1))
    return train_object(ctx, TrainingInput(case.name, case.instance.kind, rgb, mask, further), name, method)


def train_object(ctx: StageContext, subject: TrainingInput, name: str, method: Method) -> TrainingResult:
    """Run `objtune train` on an object's photos and their masks. Artifacts of earlier trainings are deleted first, except for the class prior.

    Raises:
        TrainingFailed: The command ended with an error.
        Stopped: A signal came.
    """
    folder = ctx.project.folder
    with disk_errors.translate_os_errors(folder):
        for kind in ("mask", "embedding", "adapter"):
            ctx.store.backend.delete(f"{ARTIFACTS}{kind}/")
        for state in ctx.store.backend.list(STATES, deep=True):
            if state.key.endswith(".safetensors"):  # without the lock of the bench
                ctx.store.backend.delete(state.key)
    with disk_errors.translate_os_errors(folder), tempfile.TemporaryDirectory(dir=folder) as place:
        photos = []
        for i, (rgb, mask) in enumerate([(subject.rgb, subject.mask), *subject.further]):
            photo_file, mask_file = Path(place) / f"photo-{i}.png", Path(place) / f"mask-{i}.png"
            photo_file.write_bytes(png.encode_png(rgb))
            mask_file.write_bytes(png.encode_png(mask))
            photos += [str(photo_file), HINT_OPTIONS[method.hint], str(mask_file)]
        settings = {
            f"{part}.{key}": value
            for part, values in method.training_settings().items()
            for key, value in values.items()
        }
        settings |= {"clip_model": ctx.common.clip_model} if ctx.common.clip_model else {}
        words = ["train", *photos, "--class", subject.kind, "--name", subject.name, "--no-preview"]
        command = command_runner.command_line(ctx, *words) + command_runner.set_options(settings)
        document, seconds, memory = command_runner.run_command(ctx, command, f"{name} on {subject.name}")
    command_runner.raise_failure(document, name, subject)
    import torch

    _, arrays = ctx.store.read(parse(document["refs"][-1]["ref"]), document["refs"][-1]["sha256"])
    return TrainingResult({k: torch.from_numpy(v.copy()) for k, v in arrays.items()}, seconds, memory)


def sheet_row(case: Case, images: np.ndarray) -> np.ndarray:
    """The images for the contact sheet: the first scenes, then one of each other kind."""
    kinds = [p.kind for p in case.prompts]
    columns = [i for i, k in enumerate(kinds) if k == "scene"][: SHEET_IMAGES - 1]
    columns += [kinds.index(k) for k in ("wearing", "pair") if k in kinds]
    return images[columns[:SHEET_IMAGES]]


def ground_truth(
    network: Evaluator, case: Case, dial: Dial, scale: truth_scores.Calibration, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """Renderings of the object, scored like a method: the meaning of 1, with its spread."""
    images = rendering.render_scenes([p.truth(case.instance, dial, seed + 2) for p in case.prompts])
    return truth_scores.score(case, scale, rendering.read_images(network, images)), images


def other_instance(
    network: Evaluator, case: Case, dial: Dial, scale: truth_scores.Calibration, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """Renderings of another instance of the class: the meaning of 0 of identity, with its spread."""
    other = world.sample_instance(case.generator(seed, 2), dial, kind=case.instance.kind, held_out=None)
    return ground_truth(network, replace(case, instance=other), dial, scale, seed)


def vae_reconstruction(
    ctx: StageContext, network: Evaluator, case: Case, dial: Dial, scale: truth_scores.Calibration, seed: int
) -> tuple[dict[str, float], np.ndarray]:
    """Renderings encoded and decoded by the base's VAE: the best that a method on this base could reach."""
    import torch

    from objtune_cli.generation.sampling import to_uint8

    model = ctx.load_base_model()
    true = torch.from_numpy(rendering.render_scenes([p.truth(case.instance, dial, seed + 2) for p in case.prompts]))
    small = torch.nn.functional.interpolate(
        true.permute(0, 3, 1, 2).float(), size=(model.resolution, model.resolution), mode="area"
    )
    images = to_uint8(model.decode_latents(model.encode_image(small / 127.5 - 1))).numpy()
    return truth_scores.score(case, scale, rendering.read_images(network, images)), images


def prompt_only(
    ctx: StageContext, network: Evaluator, case: Case, scale: truth_scores.Calibration
) -> tuple[dict[str, float], np.ndarray]:
    """Samples of the base with a description of the object in the prompt, without training."""
    model, words = rendering.load_adapter(ctx, case.name, None)
    images = rendering.sample_case(ctx, model, words, case, rendering.describe_object(case))
    return truth_scores.score(case, scale, rendering.read_images(network, images)), images
