"""`objtune bench --scenes`: several objects in one image by composition, summed LoRAs and joint training, scored by the toybox evaluator."""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from objtune_cli.bench import scene_training, single_training
from objtune_cli.bench.methods import BASELINES, OURS
from objtune_cli.bench.suites.objects import Row, find_dial
from objtune_cli.composition import layout_from_prompt
from objtune_cli.composition import stage as compose
from objtune_cli.config.sections import Bench, Compose, Generate, Train, identifying
from objtune_cli.errors import BusyError, UsageError
from objtune_cli.evaluation import benchmark_objects, rendering, scene_scores, statistics
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.evaluation.truth_scores import Calibration
from objtune_cli.generation import stage as generate
from objtune_cli.images import png
from objtune_cli.renamed_settings import former
from objtune_cli.store import artifacts
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.project import find_project
from objtune_cli.store.refs import Ref
from objtune_cli.store.safetensors_format import canonical_json
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.captions import PLACES
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import Dial
from objtune_cli.training import stage as train
from objtune_cli.workflow import prompt_request, trained_objects
from objtune_cli.workflow.context import StageContext, tool_versions

FORMAT = 4
KINDS = {"two": (0, 1), "three": (0, 1, 2), "same": (0, 3)}
"""Kinds of scenes to indices in a group of four: three classes, and another object of the first one's class."""
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
"""Methods that are measured if none is named."""
DEFAULT_GROUPS = 6
"""Groups of each kind if no number is given."""
IMAGES_PER_BACKGROUND = 2
"""Images of each background."""
RETRY_SECONDS = 2.0
"""Seconds after which a shard tries again to get an object that another shard is training."""


@dataclass(frozen=True, slots=True)
class Group:
    """Objects for one image, and its backgrounds."""

    name: str
    kind: str
    members: tuple[Case, ...]
    backgrounds: tuple[str, ...]

    def prompt(self, background: str) -> str:
        """The prompt of a scene, with placeholders."""
        return f"a photo of {' and '.join(f'<{m.name}>' for m in self.members)} {PLACES[background][0]}"


def make_groups(dial: Dial, count: int, seed: int, places: int) -> list[Group]:
    """Make `count` groups of each kind from held-out objects, with up to `places` backgrounds that are in no member's photo."""
    step, classes = 3, len(dial.classes)
    pool = benchmark_objects.make_cases(dial, (count - 1) * step + max(step, classes + 1), seed)
    found = []
    for g in range(count):
        four = (*pool[g * step : g * step + step], pool[g * step + classes])
        for kind, chosen in KINDS.items():
            members = tuple(four[i] for i in chosen)
            free = [b for b in dial.backgrounds if b not in {m.photo_background for m in members}]
            found.append(Group(f"{kind}-{g:03d}", kind, members, tuple(free[:places])))
    return found


@dataclass(slots=True)
class ScenesSuite:
    """One run of the suite, with cached calibrations."""

    ctx: StageContext
    out: Path
    config: Bench
    dial: Dial
    network: Evaluator
    scales: dict[str, Calibration] = field(default_factory=dict)

    def calibration(self, case: Case) -> Calibration:
        """The calibration of one object."""
        if case.name not in self.scales:
            self.scales[case.name] = rendering.calibrate(self.network, case, self.dial, self.config.seed)
        return self.scales[case.name]

    def calibrations(self, group: Group) -> list[Calibration]:
        """The calibrations of a group's objects."""
        return [self.calibration(member) for member in group.members]

    def score(self, group: Group, shown: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        """Measures of a group's images, equally many of each background, and the images."""
        per = len(shown) // len(group.backgrounds)
        asked = [b for b in group.backgrounds for _ in range(per)]
        return scene_scores.score(self.network, self.calibrations(group), asked, shown), shown

    def render_photo(self, group: Group) -> tuple[np.ndarray, list[np.ndarray]]:
        """One photo of all objects of a group, and their masks."""
        return scene_training.render_photo(group.members, self.dial, self.config.seed)

    def project_context(self, name: str) -> StageContext:
        """The context of a separate project below `out`."""
        return replace(self.ctx, project=find_project(self.out / name, create=True))


def run(ctx: StageContext, out: Path, methods: list[str], config: Bench) -> list[Row]:
    """Rows of the methods on the kinds of scenes in `config`; results in `out` are not measured again.

    Raises:
        IncompatibleError: The base is not of the toybox.
        UsageError: A kind does not exist, or a shard has no groups.
        Stopped: A signal came; finished groups are kept.
    """
    bench = ScenesSuite(ctx, out, config, find_dial(ctx), inference.load())
    kinds = _parse_kinds(config)
    share = range(config.num_objects)[config.part]  # whole groups of four: their kinds have objects in common
    asked = [
        g
        for i, g in enumerate(make_groups(bench.dial, config.num_objects, config.seed, config.prompt_rounds))
        if i // len(KINDS) in share and g.kind in kinds
    ]
    if not asked:
        raise UsageError(
            f"no group of {config.num_objects} is in the shard {config.shard}",
            "fewer shards, or more groups (`--objects`)",
        )
    found: dict[tuple[str, str], list[dict[str, float]]] = {(g.kind, m): [] for g in asked for m in methods}
    started, total, done = time.monotonic(), len(asked) * len(methods), 0
    lock = Checkpoint(bench.project_context("apart").project, f"bench {config.shard.replace('/', ' of ')}")
    with lock.lock(
        "another bench is at work in this folder",
        "wait for it, or give another --out, or shares of the groups (bench.shard)",
    ):
        for group, method in itertools.product(asked, methods):
            ctx.check_stopped()
            values, fresh = _load_or_measure(bench, group, method)
            found[group.kind, method].append(values)
            done += 1
            if fresh:
                said = "  ".join(f"{k} {v:.2f}" for k, v in values.items())
                ctx.report.note(
                    f"{method} on {group.name}: {said}  ({done} of {total}, {time.monotonic() - started:.0f} s)"
                )
    return [
        row for (kind, method), values in found.items() for row in statistics.table_rows(f"{kind}: {method}", values)
    ]


def _parse_kinds(config: Bench) -> list[str]:
    """Parse the kinds of `config.scene_kinds`, in the order of the table.

    Raises:
        UsageError: A kind does not exist.
    """
    said = [part.strip() for part in config.scene_kinds.split(",")]
    unknown = [kind for kind in said if kind not in KINDS]
    if unknown:
        raise UsageError(f"bench.scene_kinds names {', '.join(unknown)}", f"one or more of {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in said]


def _load_or_measure(bench: ScenesSuite, group: Group, method: str) -> tuple[dict[str, float], bool]:
    """The cached measures, or new ones, with a contact sheet; and whether they are new."""
    file, key = bench.out / "results" / method / f"{group.name}.json", _result_key(bench, group, method)
    try:
        held = json.loads(file.read_bytes())
        if held["key"] == key:
            return held["measures"], False
    except (OSError, ValueError, KeyError, TypeError):
        pass
    values, shown = _measure(bench, group, method)
    values = {k: round(v, 5) for k, v in values.items()}
    artifacts.write_file(file.with_suffix(".png"), png.encode_png(png.make_grid(shown)))
    artifacts.write_file(file, (json.dumps({"key": key, "measures": values}) + "\n").encode())
    return values, True


def _result_key(bench: ScenesSuite, group: Group, method: str) -> str:
    import hashlib

    ctx, own = bench.ctx, JOINT_METHODS.get(method, OURS["objtune"])
    about = {
        "format": FORMAT, "method": method, "group": repr(group), "seed": bench.config.seed, "base": ctx.base.fingerprint, "judge": single_training.evaluator_digest(),
        "sampling": former("generate", rendering.base_sampling(ctx.base)),
        "train": former("train", identifying(train.fill_defaults(replace(Train(), **own.train), ctx.base.training))), "compose": former("compose", identifying(Compose())),
        "tools": tool_versions(), "device": ctx.common.device, "precision": ctx.common.precision, "scene_guidance": ctx.base.prompt_guidance_scale(), "object_guidance": ctx.base.autoguidance_scale(),
    }  # fmt: skip
    if own.embed or own.prior:
        about |= {"embed": former("init-embedding", own.embed), "prior": former("prior", own.prior)}
    if method == "alone":
        about["object_below"] = ctx.base.subject_conditioning_start()
    return hashlib.sha256(canonical_json(about).encode()).hexdigest()


def _measure(bench: ScenesSuite, group: Group, method: str) -> tuple[dict[str, float], np.ndarray]:
    if method == "alone":
        return _measure_single(bench, group)
    if method == "truth":
        return bench.score(group, _render_truth(bench, group))
    if method in JOINT_METHODS:
        ctx = bench.project_context(f"{method}-{group.name}")
        rgb, masks = bench.render_photo(group)
        ref, cost = scene_training.train_objects(ctx, group.members, rgb, masks, JOINT_METHODS[method])
        values, shown = (
            _measure_composed(bench, ctx, group, Compose())
            if method == "joint"
            else bench.score(group, _sample_plain(ctx, group, ref))
        )
        return values | ({"seconds": cost} if cost else {}), shown
    ctx, cost = bench.project_context(f"each-{group.name}" if method == "each" else "apart"), 0.0
    rgb, masks = bench.render_photo(group)
    for member, mask in zip(group.members, masks, strict=True):
        cost += (
            scene_training.train_objects(ctx, [member], rgb, [mask])[1]
            if method == "each"
            else _train_or_wait(bench, ctx, member)
        )
    if method == "sum":
        values, shown = bench.score(group, _sample_plain(ctx, group, None))
    else:
        values, shown = _measure_composed(
            bench, ctx, group, replace(Compose(), max_retries=0) if method == "once" else Compose()
        )
    return values | ({"seconds": cost} if cost else {}), shown


def _scene_prompts(bench: ScenesSuite, group: Group) -> Iterator[tuple[str, str, int]]:
    """(background, prompt, first seed) of every scene."""
    for i, background in enumerate(group.backgrounds):
        yield background, group.prompt(background), 1000 + 10 * i


def _measure_composed(
    bench: ScenesSuite, ctx: StageContext, group: Group, how: Compose
) -> tuple[dict[str, float], np.ndarray]:
    """Measures of `objtune compose`, and how often its check agrees with the evaluator."""
    shown, said = [], []
    for _, prompt, seed in _scene_prompts(bench, group):
        done = compose.run(ctx, prompt, {}, Generate(num_images=IMAGES_PER_BACKGROUND, seed=seed), how)[0]
        shown.append(_read_images(done.images))
        said += [[m.name not in wrong for m in group.members] for wrong in done.metrics.get("wrong", [])]
    values, sheet = bench.score(group, np.concatenate(shown))
    read, scales = (
        scene_scores.find_detections(bench.network, np.concatenate(shown), len(group.members)),
        bench.calibrations(group),
    )
    return values | scene_scores.compare_checks(
        said, [scene_scores.find_present_objects(scales, things) for things in read]
    ), sheet


def _sample_plain(ctx: StageContext, group: Group, ref: Ref | None) -> np.ndarray:
    """Sample one prompt for all objects with summed LoRAs, or with one adapter, in images of the size of composed ones."""
    import torch

    from objtune_cli.generation.sampling import sample, to_uint8
    from objtune_cli.generation.settings import SamplingSettings
    from objtune_cli.lora import layers

    found = prompt_request.read_prompts(ctx, [group.prompt(group.backgrounds[0])], source=ref).objects
    model = ctx.load_base_model()
    weights = {item.name: trained_objects.load_tensors(ctx, item) for item in found}
    words = trained_objects.add_placeholders(model, found, weights)
    names = [
        f"lora{i}"
        for i, item in enumerate(found[:1] if ref else found)
        if layers.load(model, weights[item.name], f"lora{i}")
    ]
    layers.set_active(model, names)
    laid = layout_from_prompt.propose(group.prompt(group.backgrounds[0]), [o.name for o in found], {}, {})
    high, wide = (
        round(model.resolution * side / model.size_multiple) * model.size_multiple for side in (laid.high, laid.wide)
    )
    settings = SamplingSettings(**ctx.base.sampling_kwargs(), height=high, width=wide)
    drawn = []
    for i, background in enumerate(group.backgrounds):
        seeds = [1000 + 10 * i + k for k in range(IMAGES_PER_BACKGROUND)]
        drawn.append(sample(model, words.expand(group.prompt(background)), seeds, settings))
    return to_uint8(model.decode_latents(torch.cat(drawn))).numpy()


def _measure_single(bench: ScenesSuite, group: Group) -> tuple[dict[str, float], np.ndarray]:
    """Measure each object in its own images: the identity that a scene can reach."""
    ctx, found, shown = bench.project_context("apart"), [], []
    for member in group.members:
        _train_or_wait(bench, ctx, member)
        prompts = [f"a photo of <{member.name}> {PLACES[b][0]}" for b in group.backgrounds]
        for done in generate.run(ctx, prompts, Generate(num_images=IMAGES_PER_BACKGROUND, seed=1000)):
            shown.append(_read_images(done.images))
            found.append(
                bench.calibration(member)
                .identity([things[0] for things in scene_scores.find_detections(bench.network, shown[-1], 1)])
                .mean()
            )
    return {"identity": float(np.mean(found))}, np.concatenate(shown)


def _render_truth(bench: ScenesSuite, group: Group) -> np.ndarray:
    """Render scenes in the size of composed ones."""
    drawn = []
    count = len(group.members)
    side = rendering.SIDE * max(2, count) // 2
    for i, background in enumerate(group.backgrounds):
        rng = np.random.default_rng((bench.config.seed, i))
        for _ in range(IMAGES_PER_BACKGROUND):
            scene = world.sample_scene(
                rng, bench.dial, instances=tuple(m.instance for m in group.members), background=background
            )
            top = round(0.6 * side - 0.6 * rendering.SIDE)  # things stand around 0.6 of the height in either
            drawn.append(renderer.render(scene, side)[0][top : top + rendering.SIDE])
    return np.stack(drawn)


def _read_images(images: list[Path]) -> np.ndarray:
    from PIL import Image

    return np.stack([np.asarray(Image.open(path)) for path in images])


def _train_or_wait(bench: ScenesSuite, ctx: StageContext, case: Case) -> float:
    """Train one object, or wait for another shard that trains it; the seconds of training, 0 if the adapter existed."""
    rgb, mask = case.picture()
    while True:
        try:
            return scene_training.train_objects(ctx, [case], rgb, [mask])[1]
        except single_training.TrainingFailed as failed:
            if failed.code != BusyError.code:
                raise
            time.sleep(RETRY_SECONDS)
            ctx.check_stopped()
