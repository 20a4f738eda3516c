"""`objtune bench --scenes`: several objects in one picture, composed, summed and learned together, judged by the drawn truth's evaluator."""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from objtune_cli.bench import scene_training, single_training
from objtune_cli.bench.methods import BASELINES, OURS
from objtune_cli.bench.suites.objects import Row, dial_of
from objtune_cli.composition import layout
from objtune_cli.composition import stage as compose
from objtune_cli.config.sections import Bench, Compose, Generate, Train, identifying
from objtune_cli.errors import BusyError, UsageError
from objtune_cli.evaluation import benchmark_objects, rendering, scene_scores, statistics
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.evaluation.truth_scores import Scale
from objtune_cli.generation import stage as generate
from objtune_cli.images import png
from objtune_cli.store import artifacts
from objtune_cli.store.checkpoints import RunState
from objtune_cli.store.project import locate
from objtune_cli.store.refs import Ref
from objtune_cli.store.safetensors_format import canonical
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.captions import PLACES
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import Dial
from objtune_cli.training import stage as train
from objtune_cli.workflow import prompt_request, trained_objects
from objtune_cli.workflow.context import StageContext, tools

FORMAT = 4
KINDS = {"two": (0, 1), "three": (0, 1, 2), "same": (0, 3)}
"""Kinds of scenes to the members of a group of four: three classes, and another object of the first one's class."""
JOINT = {
    "joint": OURS["objtune"],
    **{f"joint-{name}": BASELINES[name] for name in ("dreambooth-lora", "custom-diffusion", "break-a-scene")},
}
"""Learned from one photo of all: by ours, drawn by compose as any objects are; and by others' settings, drawn from the prompt, each object under a token of its own and its class held by its own pictures."""
METHODS = ("truth", "alone", "composed", "once", "sum", "each", *JOINT)
"""Drawn by the world; each object in a picture of its own; compose; compose without another seed; LoRAs added; each learned in a run of its own from the one
photo of all; learned together from it."""
ASKED = ("truth", "alone", "composed", "once", "sum", "joint", "joint-dreambooth-lora", "joint-custom-diffusion")
"""What is measured where no method is named."""
GROUPS = 6
"""Groups of each kind, where no number is given."""
SEEDS_EACH = 2
"""Pictures of each background."""
WAIT = 2.0
"""Seconds after which a share asks again for an object that another one is training."""


@dataclass(frozen=True, slots=True)
class Group:
    """Objects that are to be in one picture, and where."""

    name: str
    kind: str
    members: tuple[Case, ...]
    backgrounds: tuple[str, ...]

    def prompt(self, background: str) -> str:
        """The scene in words, objects by name."""
        return f"a photo of {' and '.join(f'<{m.name}>' for m in self.members)} {PLACES[background][0]}"


def groups(dial: Dial, count: int, seed: int, places: int) -> list[Group]:
    """`count` groups of each kind, of held-out objects, each before up to `places` backgrounds that are in no member's photo."""
    step, classes = 3, len(dial.classes)
    pool = benchmark_objects.cases(dial, (count - 1) * step + max(step, classes + 1), seed)
    found = []
    for g in range(count):
        four = (*pool[g * step : g * step + step], pool[g * step + classes])
        for kind, chosen in KINDS.items():
            members = tuple(four[i] for i in chosen)
            free = [b for b in dial.backgrounds if b not in {m.photo_background for m in members}]
            found.append(Group(f"{kind}-{g:03d}", kind, members, tuple(free[:places])))
    return found


@dataclass(slots=True)
class Running:
    """One run: what it measures with, where it trains, what it knows so far."""

    ctx: StageContext
    out: Path
    config: Bench
    dial: Dial
    network: Evaluator
    scales: dict[str, Scale] = field(default_factory=dict)

    def scale(self, case: Case) -> Scale:
        """0 and 1 of identity for one object."""
        if case.name not in self.scales:
            self.scales[case.name] = rendering.scale(self.network, case, self.dial, self.config.seed)
        return self.scales[case.name]

    def scaled(self, group: Group) -> list[Scale]:
        """The same for each object of a group."""
        return [self.scale(member) for member in group.members]

    def scored(self, group: Group, shown: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        """Measures of pictures of a group, equally many of each background, and the pictures."""
        per = len(shown) // len(group.backgrounds)
        asked = [b for b in group.backgrounds for _ in range(per)]
        return scene_scores.score(self.network, self.scaled(group), asked, shown), shown

    def photo(self, group: Group) -> tuple[np.ndarray, list[np.ndarray]]:
        """One photo of all the group's objects, and where each is."""
        return scene_training.photo(group.members, self.dial, self.config.seed)

    def inside(self, name: str) -> StageContext:
        """A project below `out`, for trainings and scenes that do not know of others."""
        return replace(self.ctx, project=locate(self.out / name, create=True))


def run(ctx: StageContext, out: Path, methods: list[str], config: Bench) -> list[Row]:
    """Rows of the methods on the asked kinds of scenes; what `out` holds is not measured again.

    Raises:
        IncompatibleError: A base without a world. UsageError: a kind that there is not, or a shard without groups.
        Stopped: a signal came; finished groups are kept.
    """
    bench = Running(ctx, out, config, dial_of(ctx), inference.load())
    kinds = _kinds(config)
    share = range(config.objects)[config.part]  # whole groups of four: their kinds have objects in common
    asked = [
        g
        for i, g in enumerate(groups(bench.dial, config.objects, config.seed, config.repeats))
        if i // len(KINDS) in share and g.kind in kinds
    ]
    if not asked:
        raise UsageError(
            f"no group of {config.objects} is in the shard {config.shard}", "fewer shards, or more groups (`--objects`)"
        )
    found: dict[tuple[str, str], list[dict[str, float]]] = {(g.kind, m): [] for g in asked for m in methods}
    started, total, done = time.monotonic(), len(asked) * len(methods), 0
    lock = RunState(bench.inside("apart").project, f"bench {config.shard.replace('/', ' of ')}")
    with lock.locked(
        "another bench is at work in this folder",
        "wait for it, or give another --out, or shares of the groups (bench.shard)",
    ):
        for group, method in itertools.product(asked, methods):
            ctx.check_stopped()
            values, fresh = _result(bench, group, method)
            found[group.kind, method].append(values)
            done += 1
            if fresh:
                said = "  ".join(f"{k} {v:.2f}" for k, v in values.items())
                ctx.report.note(
                    f"{method} on {group.name}: {said}  ({done} of {total}, {time.monotonic() - started:.0f} s)"
                )
    return [row for (kind, method), values in found.items() for row in statistics.rows(f"{kind}: {method}", values)]


def _kinds(config: Bench) -> list[str]:
    """The kinds of `config.together`, in the order of the table.

    Raises:
        UsageError: One of them is not known.
    """
    said = [part.strip() for part in config.together.split(",")]
    unknown = [kind for kind in said if kind not in KINDS]
    if unknown:
        raise UsageError(f"bench.together names {', '.join(unknown)}", f"one or more of {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in said]


def _result(bench: Running, group: Group, method: str) -> tuple[dict[str, float], bool]:
    """Kept measures, or new ones with a sheet of their pictures."""
    file, key = bench.out / "results" / method / f"{group.name}.json", _key(bench, group, method)
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


def _key(bench: Running, group: Group, method: str) -> str:
    import hashlib

    ctx, own = bench.ctx, JOINT.get(method, OURS["objtune"])
    about = {
        "format": FORMAT, "method": method, "group": repr(group), "seed": bench.config.seed, "base": ctx.base.fingerprint, "judge": single_training.judge(),
        "sampling": rendering.plainly(ctx.base), "train": identifying(train.fill_defaults(replace(Train(), **own.train), ctx.base.training)), "compose": identifying(Compose()),
        "tools": tools(), "device": ctx.common.device, "precision": ctx.common.precision, "scene_guidance": ctx.base.scene_guidance(), "object_guidance": ctx.base.object_guidance(),
    }  # fmt: skip
    if own.embed or own.prior:
        about |= {"embed": dict(own.embed), "prior": dict(own.prior)}
    if method == "alone":
        about["object_below"] = ctx.base.object_below()
    return hashlib.sha256(canonical(about).encode()).hexdigest()


def _measure(bench: Running, group: Group, method: str) -> tuple[dict[str, float], np.ndarray]:
    if method == "alone":
        return _alone(bench, group)
    if method == "truth":
        return bench.scored(group, _truth(bench, group))
    if method in JOINT:
        ctx = bench.inside(f"{method}-{group.name}")
        rgb, masks = bench.photo(group)
        ref, cost = scene_training.learned(ctx, group.members, rgb, masks, JOINT[method])
        values, shown = (
            _composed(bench, ctx, group, Compose())
            if method == "joint"
            else bench.scored(group, _plain(ctx, group, ref))
        )
        return values | ({"seconds": cost} if cost else {}), shown
    ctx, cost = bench.inside(f"each-{group.name}" if method == "each" else "apart"), 0.0
    rgb, masks = bench.photo(group)
    for member, mask in zip(group.members, masks, strict=True):
        cost += (
            scene_training.learned(ctx, [member], rgb, [mask])[1] if method == "each" else _trained(bench, ctx, member)
        )
    if method == "sum":
        values, shown = bench.scored(group, _plain(ctx, group, None))
    else:
        values, shown = _composed(bench, ctx, group, replace(Compose(), retries=0) if method == "once" else Compose())
    return values | ({"seconds": cost} if cost else {}), shown


def _asked(bench: Running, group: Group) -> Iterator[tuple[str, str, int]]:
    """(background, prompt, first seed) of every command."""
    for i, background in enumerate(group.backgrounds):
        yield background, group.prompt(background), 1000 + 10 * i


def _composed(bench: Running, ctx: StageContext, group: Group, how: Compose) -> tuple[dict[str, float], np.ndarray]:
    """What `objtune compose` draws, and how often its own check agrees with the evaluator."""
    shown, said = [], []
    for _, prompt, seed in _asked(bench, group):
        done = compose.run(ctx, prompt, {}, Generate(n=SEEDS_EACH, seed=seed), how)[0]
        shown.append(_opened(done.images))
        said += [[m.name not in wrong for m in group.members] for wrong in done.metrics.get("wrong", [])]
    values, sheet = bench.scored(group, np.concatenate(shown))
    read, scales = scene_scores.seen(bench.network, np.concatenate(shown), len(group.members)), bench.scaled(group)
    return values | scene_scores.checked(said, [scene_scores.present(scales, things) for things in read]), sheet


def _plain(ctx: StageContext, group: Group, ref: Ref | None) -> np.ndarray:
    """One prompt for all objects, their LoRAs added (or one adapter), in pictures as wide as composed ones."""
    import torch

    from objtune_cli.generation.sampling import sample, to_uint8
    from objtune_cli.lora import layers

    found = prompt_request.read(ctx, [group.prompt(group.backgrounds[0])], source=ref).objects
    model = ctx.load_base_model()
    weights = {item.name: trained_objects.tensors(ctx, item) for item in found}
    words = trained_objects.add_words(model, found, weights)
    names = [
        f"lora{i}"
        for i, item in enumerate(found[:1] if ref else found)
        if layers.load(model, weights[item.name], f"lora{i}")
    ]
    layers.set_active(model, names)
    laid = layout.proposed(group.prompt(group.backgrounds[0]), [o.name for o in found], {}, {})
    high, wide = (round(model.size * side / model.unit) * model.unit for side in (laid.high, laid.wide))
    drawn = []
    for i, background in enumerate(group.backgrounds):
        seeds = [1000 + 10 * i + k for k in range(SEEDS_EACH)]
        drawn.append(
            sample(model, words.expand(group.prompt(background)), "", seeds, **ctx.base.drawn(), size=(high, wide))
        )
    return to_uint8(model.to_picture(torch.cat(drawn))).numpy()


def _alone(bench: Running, group: Group) -> tuple[dict[str, float], np.ndarray]:
    """Each object in pictures of its own: what identity a scene can reach."""
    ctx, found, shown = bench.inside("apart"), [], []
    for member in group.members:
        _trained(bench, ctx, member)
        prompts = [f"a photo of <{member.name}> {PLACES[b][0]}" for b in group.backgrounds]
        for done in generate.run(ctx, prompts, Generate(n=SEEDS_EACH, seed=1000)):
            shown.append(_opened(done.images))
            found.append(
                bench.scale(member)
                .identity([things[0] for things in scene_scores.seen(bench.network, shown[-1], 1)])
                .mean()
            )
    return {"identity": float(np.mean(found))}, np.concatenate(shown)


def _truth(bench: Running, group: Group) -> np.ndarray:
    """Scenes drawn by the world, of the size that composed ones have."""
    drawn = []
    count = len(group.members)
    side = rendering.SIDE * max(2, count) // 2
    for i, background in enumerate(group.backgrounds):
        rng = np.random.default_rng((bench.config.seed, i))
        for _ in range(SEEDS_EACH):
            scene = world.sample_scene(
                rng, bench.dial, instances=tuple(m.instance for m in group.members), background=background
            )
            top = round(0.6 * side - 0.6 * rendering.SIDE)  # things stand around 0.6 of the height in either
            drawn.append(renderer.render(scene, side)[0][top : top + rendering.SIDE])
    return np.stack(drawn)


def _opened(images: list[Path]) -> np.ndarray:
    from PIL import Image

    return np.stack([np.asarray(Image.open(path)) for path in images])


def _trained(bench: Running, ctx: StageContext, case: Case) -> float:
    """Train one object where it is not yet, or wait for the process of another share that does; seconds it took, 0 where it was there."""
    rgb, mask = case.picture()
    while True:
        try:
            return scene_training.learned(ctx, [case], rgb, [mask])[1]
        except single_training.Failed as failed:
            if failed.code != BusyError.code:
                raise
            time.sleep(WAIT)
            ctx.check_stopped()
