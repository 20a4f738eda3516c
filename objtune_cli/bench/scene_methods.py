"""The methods of `objtune bench scenes`: each makes the images of a group of objects and scores them with the toybox's evaluator."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from objtune_cli.bench import scene_training
from objtune_cli.bench.command_runner import TrainingFailed
from objtune_cli.bench.methods import BASELINES, OURS
from objtune_cli.bench.scene_groups import Group
from objtune_cli.composition import compose, layout_from_prompt
from objtune_cli.config.sections import Bench, Compose, Generate
from objtune_cli.errors import BusyError
from objtune_cli.evaluation import rendering, scene_scores
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.evaluation.truth_scores import Calibration
from objtune_cli.generation import generate
from objtune_cli.store.project import find_project
from objtune_cli.store.refs import Ref
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.captions import PLACES
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import Dial
from objtune_cli.workflow import prompt_request, trained_objects
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.generation.settings import SamplingSettings
    from objtune_cli.models.base_model import BaseModel

JOINT_METHODS = {
    "joint": OURS["objtune"],
    **{f"joint-{name}": BASELINES[name] for name in ("dreambooth-lora", "custom-diffusion", "break-a-scene")},
}
"""Joint trainings from one photo of all objects: ours, sampled by `compose`; and baselines, sampled from the prompt, each object with its own token and class images."""
METHODS = ("truth", "alone", "composed", "once", "sum", "each", *JOINT_METHODS)
"""Renderings; each object in its own image; `compose`; `compose` without retries; summed LoRAs; separate trainings from the one photo of all;
joint trainings from it."""
DEFAULT_METHODS = (
    "truth",
    "alone",
    "composed",
    "once",
    "sum",
    "joint",
    "joint-dreambooth-lora",
    "joint-custom-diffusion",
)
"""Methods that are measured by default."""
IMAGES_PER_BACKGROUND = 2
RETRY_SECONDS = 2.0
"""Seconds between checks for an object that another shard is training."""

Measured = tuple[dict[str, float], np.ndarray]
"""Measures of a method on a group, and its images."""


@dataclass(slots=True)
class SceneBench:
    """A run of the benchmark of scenes, with cached calibrations."""

    ctx: StageContext
    out: Path
    config: Bench
    dial: Dial
    network: Evaluator
    scales: dict[str, Calibration] = field(default_factory=dict)

    def calibration(self, case: Case) -> Calibration:
        """Return the calibration of one object."""
        if case.name not in self.scales:
            self.scales[case.name] = rendering.calibrate(self.network, case, self.dial, self.config.seed)
        return self.scales[case.name]

    def calibrations(self, group: Group) -> list[Calibration]:
        """Return the calibrations of a group's objects."""
        return [self.calibration(member) for member in group.members]

    def score(self, group: Group, images: np.ndarray) -> Measured:
        """Score a group's images, equally many of each background."""
        per_background = len(images) // len(group.backgrounds)
        backgrounds = [b for b in group.backgrounds for _ in range(per_background)]
        return scene_scores.score(self.network, self.calibrations(group), backgrounds, images), images

    def render_photo(self, group: Group) -> tuple[np.ndarray, list[np.ndarray]]:
        """Render one photo of all objects of a group, and the mask of each."""
        return scene_training.render_photo(group.members, self.dial, self.config.seed)

    def project_context(self, name: str) -> StageContext:
        """Return the context of a separate project below `out`."""
        return replace(self.ctx, project=find_project(self.out / name, create=True))


def measure(bench: SceneBench, group: Group, method: str) -> Measured:
    """Measure one method on one group; the measures contain `seconds` if it trained anything."""
    if method == "alone":
        return _measure_single(bench, group)
    if method == "truth":
        return bench.score(group, render_truth(bench, group))
    if method in JOINT_METHODS:
        return _measure_joint(bench, group, method)
    ctx = bench.project_context(f"each-{group.name}" if method == "each" else "apart")
    rgb, masks = bench.render_photo(group)
    seconds = 0.0
    for member, mask in zip(group.members, masks, strict=True):
        if method == "each":
            seconds += scene_training.train_objects(ctx, [member], rgb, [mask])[1]
        else:
            seconds += train_or_wait(ctx, member)
    if method == "sum":
        measures = bench.score(group, _sample_plain(ctx, group, None))
    else:
        config = replace(Compose(), max_retries=0) if method == "once" else Compose()
        measures = _measure_composed(bench, ctx, group, config)
    return _add_seconds(measures, seconds)


def _measure_joint(bench: SceneBench, group: Group, method: str) -> Measured:
    """Train all objects of one photo jointly; sample by `compose` (ours) or from the prompt (baselines)."""
    ctx = bench.project_context(f"{method}-{group.name}")
    rgb, masks = bench.render_photo(group)
    ref, seconds = scene_training.train_objects(ctx, group.members, rgb, masks, JOINT_METHODS[method])
    if method == "joint":
        measures = _measure_composed(bench, ctx, group, Compose())
    else:
        measures = bench.score(group, _sample_plain(ctx, group, ref))
    return _add_seconds(measures, seconds)


def _add_seconds(measures: Measured, seconds: float) -> Measured:
    values, images = measures
    return values | ({"seconds": seconds} if seconds else {}), images


def _measure_composed(bench: SceneBench, ctx: StageContext, group: Group, config: Compose) -> Measured:
    """Measure `objtune compose`, and how often its check agrees with the evaluator."""
    parts: list[np.ndarray] = []
    checks: list[list[bool]] = []
    for _, prompt, seed in group.scenes():
        result = compose.run(ctx, prompt, {}, Generate(num_images=IMAGES_PER_BACKGROUND, seed=seed), config)[0]
        parts.append(_read_images(result.images))
        checks += [[m.name not in wrong for m in group.members] for wrong in result.metrics.get("wrong", [])]
    images = np.concatenate(parts)
    values, _ = bench.score(group, images)
    scales = bench.calibrations(group)
    detections = scene_scores.find_detections(bench.network, images, len(group.members))
    present = [scene_scores.find_present_objects(scales, things) for things in detections]
    return values | scene_scores.score_presence_check(checks, present), images


def _sample_plain(ctx: StageContext, group: Group, ref: Ref | None) -> np.ndarray:
    """Sample one prompt for all objects, with one adapter or with summed LoRAs (ref None), in the size of composed images."""
    import torch

    from objtune_cli.generation.sampling import sample, to_uint8
    from objtune_cli.lora import layers

    objects = prompt_request.read_prompts(ctx, [group.prompt(group.backgrounds[0])], source=ref).objects
    model = ctx.load_base_model()
    weights = {item.name: trained_objects.load_tensors(ctx, item) for item in objects}
    placeholders = trained_objects.add_placeholders(model, objects, weights)
    loras = {f"lora{i}": item for i, item in enumerate(objects[:1] if ref else objects)}
    layers.set_active(model, [lora for lora, item in loras.items() if layers.load(model, weights[item.name], lora)])
    settings = _composed_size(ctx, model, group, [o.name for o in objects])
    latents = []
    for _, prompt, first in group.scenes():
        seeds = [first + k for k in range(IMAGES_PER_BACKGROUND)]
        latents.append(sample(model, placeholders.expand(prompt), seeds, settings))
    return to_uint8(model.decode_latents(torch.cat(latents))).numpy()


def _composed_size(ctx: StageContext, model: "BaseModel", group: Group, names: Sequence[str]) -> "SamplingSettings":
    """Return the base's sampling settings with the image size that `compose` would choose."""
    from objtune_cli.generation.settings import SamplingSettings

    layout = layout_from_prompt.propose(group.prompt(group.backgrounds[0]), list(names), {}, {})
    unit = model.size_multiple
    height, width = (round(model.resolution * side / unit) * unit for side in (layout.high, layout.wide))
    return SamplingSettings(**ctx.base.sampling_kwargs(), height=height, width=width)


def _measure_single(bench: SceneBench, group: Group) -> Measured:
    """Measure each object in its own images: the identity that a scene can reach."""
    ctx = bench.project_context("apart")
    identities, parts = [], []
    for member in group.members:
        train_or_wait(ctx, member)
        prompts = [f"a photo of <{member.name}> {PLACES[b][0]}" for b in group.backgrounds]
        for result in generate.run(ctx, prompts, Generate(num_images=IMAGES_PER_BACKGROUND, seed=1000)):
            images = _read_images(result.images)
            things = [things[0] for things in scene_scores.find_detections(bench.network, images, 1)]
            parts.append(images)
            identities.append(bench.calibration(member).identity(things).mean())
    return {"identity": float(np.mean(identities))}, np.concatenate(parts)


def render_truth(bench: SceneBench, group: Group) -> np.ndarray:
    """Render a group's scenes in the size of composed images, (N, H, W, 3) uint8."""
    images = []
    side = rendering.SIDE * max(2, len(group.members)) // 2
    top = round(0.6 * side - 0.6 * rendering.SIDE)  # objects stand near 0.6 of the height in both sizes
    for i, background in enumerate(group.backgrounds):
        rng = np.random.default_rng((bench.config.seed, i))
        for _ in range(IMAGES_PER_BACKGROUND):
            instances = tuple(m.instance for m in group.members)
            scene = world.sample_scene(rng, bench.dial, instances=instances, background=background)
            images.append(renderer.render(scene, side)[0][top : top + rendering.SIDE])
    return np.stack(images)


def _read_images(paths: Sequence[Path]) -> np.ndarray:
    from PIL import Image

    return np.stack([np.asarray(Image.open(path)) for path in paths])


def train_or_wait(ctx: StageContext, case: Case) -> float:
    """Train one object, or wait for a shard that trains it; the seconds of training, 0 if the adapter existed."""
    rgb, mask = case.picture()
    while True:
        try:
            return scene_training.train_objects(ctx, [case], rgb, [mask])[1]
        except TrainingFailed as failed:
            if failed.code != BusyError.code:
                raise
            time.sleep(RETRY_SECONDS)
            ctx.check_stopped()
