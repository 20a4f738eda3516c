"""`generate`: prompts to pictures, and a scene artifact with their latents."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from objtune_cli.config.sections import Generate, identifying, seed_after
from objtune_cli.errors import GateError, InputError
from objtune_cli.generation import image_size, lora_hashes
from objtune_cli.images import png as pictures
from objtune_cli.store import artifacts
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.store.safetensors_format import canonical
from objtune_cli.version import __version__
from objtune_cli.workflow import output_files, prompt_request, trained_objects
from objtune_cli.workflow.context import StageContext, StageResult, keep_picture, pictures_of
from objtune_cli.workflow.prompt_text import escape_syntax, write_strengths

if TYPE_CHECKING:
    import numpy as np
    import torch

    from objtune_cli.models.base_model import BaseModel

BATCH = 4


def run(
    ctx: StageContext, prompts: list[str], config: Generate, out: Path | None = None, source: Ref | None = None
) -> list[StageResult]:
    """Draw each prompt `config.n` times; one scene a prompt; `source`: the adapter that holds all objects.

    Raises:
        InputError, MissingError: See `request.read`.
    """
    if out is not None:
        output_files.check_folder(out)
    asked = prompt_request.read(ctx, prompts, config.negative, source, config.strength)
    _check_shared(asked)
    config = suited(ctx, replace(config, negative=asked.negative, strength=1.0))  # which the objects have now
    note_guidance(ctx, config)
    done = [_scene(ctx, asked, i, config) for i in range(len(asked.prompts))]
    waiting = [i for i, (_, reused) in enumerate(done) if reused is None]
    results = [reused for _, reused in done]
    if waiting:
        base_model = ctx.load_base_model()
        weights = {item.name: trained_objects.tensors(ctx, item) for item in asked.objects}
        words = trained_objects.add_words(base_model, asked.objects, weights)
        prompt_request.check_lengths(ctx, base_model, words, asked)
        loaded = _add_adapters(base_model, [o for named in asked.named for o in named], weights)
        for i in waiting:
            _activate(base_model, [name for o in asked.named[i] if (name := loaded[o.record.ref, o.strength])])
            results[i] = _draw(ctx, base_model, words, asked.prompts[i], done[i][0], config)
    finished = [r for r in results if r is not None]
    return copied(finished, out, ctx)


def suited(ctx: StageContext, config: Generate) -> Generate:
    """Steps, guidance and the pictures' size filled in from what suits the base."""
    own = ctx.base.sampling
    return replace(
        image_size.fit(ctx, config),
        steps=config.steps or int(own["steps"]),
        guidance=config.guidance if config.guidance >= 0 else float(own["guidance"]),
        guidance_below=config.guidance_below if config.guidance_below >= 0 else float(own.get("guidance_below", 1)),
        scene_guidance=ctx.base.scene_guidance(config.scene_guidance),
        object_below=ctx.base.object_below(config.object_below),
    )


def note_guidance(ctx: StageContext, config: Generate) -> None:
    """Tell the user where a negative prompt cannot act."""
    if config.negative.strip() and config.guidance <= 1:
        ctx.report.note(f"the negative prompt has no effect at a guidance of {config.guidance:g}; it acts above 1")
    elif config.negative.strip() and config.guidance_below <= 0:
        ctx.report.note(
            "the negative prompt has no effect, because `generate.guidance_below` lets guidance act at no step"
        )


def _scene(
    ctx: StageContext, asked: prompt_request.Request, i: int, config: Generate
) -> tuple[Record, StageResult | None]:
    found, prompt = asked.named[i], asked.prompts[i]
    classes = {o.name: o.class_word for o in found}
    name = "-".join(classes)[:64].rstrip("-.") or "scene"
    settings = identifying(config) | drawn_by(ctx, config) | {"prompt": prompt} | strengths(found)
    record = Record(
        "scene", name, classes, trained_objects.inputs(found, asked.avoided(i)), settings, ctx.base.record()
    )
    return record, reuse(ctx, record, config, prompt)


def drawn_by(ctx: StageContext, config: Generate) -> dict[str, str]:
    """The base's own sampler, where it draws."""
    return ctx.base.drawn_by() if config.scheduler == "base" else {}


def strengths(found: Sequence[trained_objects.Named]) -> dict[str, dict[str, float]]:
    """What a scene's settings keep of its objects' strengths; nothing where all are 1."""
    other = {o.name: o.strength for o in found if o.strength != 1}
    return {"strengths": other} if other else {}


def _check_shared(asked: prompt_request.Request) -> None:
    """Refuse different strengths of one LoRA, which acts everywhere in a picture.

    Raises:
        InputError: Objects of one joint adapter have different strengths.
    """
    for found in asked.named:
        for a, b in itertools.combinations(found, 2):
            if a.record.ref == b.record.ref and a.strength != b.strength:
                raise InputError(
                    f"<{a.name}> and <{b.name}> share one LoRA, {a.record.ref}, and have the strengths {a.strength:g} and {b.strength:g}",
                    "give them one strength, or draw them with `objtune compose`",
                )


def reuse(
    ctx: StageContext, record: Record, config: Generate, prompt: str, decode: "Decode | None" = None
) -> StageResult | None:
    """A finished scene; pictures that are gone are decoded again from its latents. None where one shows nothing, which earlier versions let pass."""
    ref = None if ctx.force else ctx.find(record, computed=True)
    if ref is None:
        ctx.project.check_writable(record.kind, record.name)
        return None
    kept = artifacts.read_record(ctx.root, ref).metrics
    images, shown = [image for image in pictures_of(ctx.root, ref) if image.stem.isdigit()], None
    if len(images) != config.n:
        import torch

        tensors = {name: torch.from_numpy(array.copy()) for name, array in artifacts.load(ctx.root, ref)[1].items()}
        shown = (decode or decode_latents)(ctx.load_base_model(), record, tensors)
    flat = flat_of([pictures.read(image) for image in images] if shown is None else shown)
    if set(flat) - set(kept.get(FLAT, ())):
        ctx.report.note(f"{ref} is not used again: {which(flat, config.n)} of one colour")
        ctx.project.check_writable(record.kind, record.name)
        return None
    done = ctx.reuse(record, computed=True)
    if done is not None:
        done.images = (
            images if shown is None else write_pictures(ctx, ref, replace(record, metrics=kept), shown, config, prompt)
        )
    return done


def _add_adapters(
    base_model: "BaseModel", found: list[trained_objects.Named], weights: dict[str, dict[str, Any]]
) -> dict[tuple[Ref, float], str]:
    """Add every adapter once for each of its strengths; the names they have in the denoiser, "" for a token without LoRA."""
    from objtune_cli.lora import layers

    loaded: dict[tuple[Ref, float], str] = {}
    for item in found:
        if (item.record.ref, item.strength) not in loaded:
            name = f"lora{len(loaded)}"
            loaded[item.record.ref, item.strength] = (
                name if layers.load(base_model, trained_objects.scale(weights[item.name], item.strength), name) else ""
            )
    return loaded


def _activate(base_model: "BaseModel", names: list[str]) -> None:
    """Let a prompt's own adapters act, several with their deltas summed, and no others."""
    from objtune_cli.lora import layers

    layers.set_active(base_model, list(dict.fromkeys(names)))


def _draw(
    ctx: StageContext, base_model: "BaseModel", words: Any, prompt: str, record: Record, config: Generate
) -> StageResult:
    import torch

    from objtune_cli.generation.sampling import sample

    text = words.expand(prompt)
    step = ctx.progress("generate")
    parts = []
    for seeds, on_step in batches(config, step):
        drawn = sample(
            base_model, text, words.expand(config.negative), seeds, config.steps, config.guidance, config.scheduler, on_step,
            below=config.guidance_below, scene=config.scene_guidance, own=config.object_guidance, object_below=config.object_below,
            size=(config.height, config.width),
        )  # fmt: skip
        parts.append(drawn)
    return keep(
        ctx, base_model, replace(record, tools=ctx.tools(base_model)), {"latents": torch.cat(parts)}, config, prompt
    )


def batches(config: Generate, step: Callable[..., None]) -> Iterator[tuple[list[int], Callable[[int, int], None]]]:
    """The seeds of each batch, and a callback that counts its steps as part of the whole."""
    rounds = -(-config.n // BATCH)
    for i in range(rounds):
        seeds = [seed_after(config.seed, k) for k in range(i * BATCH, min((i + 1) * BATCH, config.n))]

        def on_step(done: int, total: int, before: int = i) -> None:
            step(before * total + done, rounds * total)

        yield seeds, on_step


def keep(
    ctx: StageContext,
    base_model: "BaseModel",
    record: Record,
    tensors: dict[str, "torch.Tensor"],
    config: Generate,
    prompt: str,
    decode: "Decode | None" = None,
) -> StageResult:
    """Publish a scene: what its pictures are made of in the artifact, PNGs beside it.

    Raises:
        GateError: A picture shows nothing; not with `--force`, which keeps it.
    """
    shown = (decode or decode_latents)(base_model, record, tensors)
    flat = flat_of(shown)
    if flat and not ctx.force:
        precision = "`--precision fp32`, " if "precision" in record.tools else ""
        raise GateError(
            f"{which(flat, len(shown))} of one colour: nothing is published",
            f"try {precision}another `--seed`, or another `--base`; `--force` keeps it",
        )
    if flat:
        ctx.report.note(f"{which(flat, len(shown))} of one colour")
        record = replace(record, metrics={**record.metrics, FLAT: flat})
    ref = artifacts.publish(ctx.root, record, tensors)
    return StageResult(ref, False, write_pictures(ctx, ref, record, shown, config, prompt), dict(record.metrics))


FLAT = "one_colour"
"""The metric that says which pictures of a scene, from 0, are of one colour and were kept by `--force`."""


def flat_of(shown: "Iterable[np.ndarray]") -> list[int]:
    """Which of some pictures (H, W, 3) uint8 are of one colour."""
    return [i for i, picture in enumerate(shown) if pictures.is_single_color(picture)]


def which(pictures: list[int], count: int) -> str:
    """Some of so many pictures as the subject of a sentence."""
    if count == 1:
        return "the picture is"
    return f"picture{'s' if len(pictures) > 1 else ''} {', '.join(str(i + 1) for i in pictures)} of {count} {'are' if len(pictures) > 1 else 'is'}"


def decode_latents(base_model: "BaseModel", record: Record, tensors: "Mapping[str, torch.Tensor]") -> "np.ndarray":
    """The images (N, H, W, 3) uint8 of a generated scene; composed scenes have a decoder of their own."""
    from objtune_cli.generation.sampling import to_uint8

    return to_uint8(base_model.to_picture(tensors["latents"]).cpu()).numpy()


Decode = Callable[["BaseModel", Record, "Mapping[str, torch.Tensor]"], "np.ndarray"]
"""(base model, record, tensors) to images (N, H, W, 3) uint8."""


def write_pictures(
    ctx: StageContext, ref: Ref, record: Record, shown: "np.ndarray", config: Generate, prompt: str
) -> list[Path]:
    """Write a scene's pictures as PNGs that say how they were made, in the form other tools read; `seeds` in the metrics: those that were kept."""
    images = []
    known = lora_hashes.of(ctx, record.inputs)
    seeds = record.metrics.get("seeds", [seed_after(config.seed, k) for k in range(len(shown))])
    for i, picture in enumerate(shown):
        size = (picture.shape[1], picture.shape[0])
        said = parameters(
            write_strengths(prompt, record.config.get("strengths", {})),
            config,
            int(seeds[i]),
            size,
            ctx.base.id,
            ctx.base.sampler,
            known,
        )
        about = canonical({"scene": str(ref), "inputs": record.inputs, "seed": seeds[i]})
        data = pictures.encode_png(picture, {"parameters": said, "objtune": about})
        images.append(keep_picture(ctx.root, ref, f"{i + 1:03d}.png", data))
    return images


SAMPLERS = {"ddim": "DDIM", "euler": "Euler", "dpm++": "DPM++ 2M"}
"""What A1111 calls them; without a name, a base is drawn with its family's own."""


def parameters(
    prompt: str,
    config: Generate,
    seed: int,
    size: tuple[int, int],
    model: str,
    own: tuple[str, str] = ("DDIM", ""),
    known: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """How a picture was made, in the lines that A1111, Forge and Civitai read: prompt, negative prompt, `Key: value` pairs.

    Args:
        own: What they call the sampler of the base and the type of its schedule. known: hashes of the adapters' files.

    Source: `infotext_utils.py` of A1111; values that hold a comma, a colon or a line break are JSON strings.
    """
    pairs: dict[str, object] = {"Steps": config.steps, "Sampler": SAMPLERS.get(config.scheduler, own[0])}
    if config.scheduler not in SAMPLERS and own[1]:
        pairs["Schedule type"] = own[1]
    pairs |= {"CFG scale": f"{config.guidance:g}", "Seed": seed}
    if config.guidance_below < 1:
        pairs["CFG below"] = f"{config.guidance_below:g}"
    if config.scene_guidance > 0:
        pairs["Scene guidance"] = f"{config.scene_guidance:g}"
    if config.object_below < 1:
        pairs["Object below"] = f"{config.object_below:g}"
    if config.object_guidance > 0:
        pairs["Object guidance"] = f"{config.object_guidance:g}"
    pairs |= {"Size": f"{size[0]}x{size[1]}", "Model": model, **known, "Version": f"objtune {__version__}"}
    lines = [
        escape_syntax(prompt),
        *([f"Negative prompt: {escape_syntax(config.negative)}"] if config.negative else []),
    ]
    return "\n".join([*lines, ", ".join(f"{key}: {_quoted(str(value))}" for key, value in pairs.items())])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text


def copied(results: list[StageResult], out: Path | None, ctx: StageContext) -> list[StageResult]:
    """The results with their pictures copied to `out`, named after their scenes; what lies there is not replaced."""
    if out is None:
        return results
    for done in results:
        done.images = [
            output_files.add(out / f"{done.ref.name}-{done.ref.version:03d}-{image.name}", image.read_bytes())
            for image in done.images
        ]
    return results
