"""Sampling options of `generate` and `compose`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from objtune_cli.cli import completion
from objtune_cli.config import file_patterns
from objtune_cli.config.sections import SEEDS, Generate
from objtune_cli.errors import UsageError

if TYPE_CHECKING:
    from objtune_cli.workflow.context import StageContext, StageResult

NumImages = Annotated[
    int | None, typer.Option("-n", help="Images per prompt.", show_default=str(Generate().num_images))
]


Seed = Annotated[
    str | None,
    typer.Option(
        "--seed",
        metavar="N[,N…]",
        help=f"Seed of the first image, {SEEDS}; several with commas: one image for each.",
        show_default=str(Generate().seed),
    ),
]


Steps = Annotated[
    int | None, typer.Option("--steps", help="Number of sampling steps; default: the base model's.", show_default=False)
]


Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Guidance scale; default: the base model's.", show_default=False)
]


Negative = Annotated[
    str | None,
    typer.Option(
        "--negative",
        help="Negative prompt; <name> avoids a trained object; auto: the base's own in objtune.toml.",
        show_default="auto",
    ),
]


Style = Annotated[
    list[str] | None,
    typer.Option(
        "--style",
        metavar="NAME",
        help="Style from objtune.toml to apply to the prompts; repeat for several.",
        autocompletion=completion.style_name,
    ),
]


Wildcards = Annotated[
    Path | None,
    typer.Option(
        "--wildcards",
        metavar="DIR",
        help="Folder of wildcards: __animal__ is a line of animal.txt, chosen by the seed.",
    ),
]


Width = Annotated[
    int | None,
    typer.Option("--width", metavar="PX", help="Image width; default: the base model's.", show_default=False),
]


Height = Annotated[
    int | None,
    typer.Option("--height", metavar="PX", help="Image height; default: the base model's.", show_default=False),
]


Size = Annotated[str | None, typer.Option("--size", metavar="WxH", help="Image size, for example 832x1216.")]


Aspect = Annotated[
    str | None,
    typer.Option("--aspect", metavar="W:H", help="Aspect ratio, for example 3:2; the area stays the base model's."),
]


Strength = Annotated[
    float | None,
    typer.Option(
        "--strength",
        help="Strength of the objects, 0 to 2; 0 draws the class; <rex:0.8> in the prompt sets one.",
        show_default="1",
    ),
]


Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE:STRENGTH",
        help="LoRA to use in addition to the objects, for example style.safetensors:0.7, or an adapter; repeat for several.",
    ),
]


Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="NAME",
        help="Sampler, for example euler_a, dpmpp_2m_karras, unipc, lcm; auto: the base model's own.",
        show_default="auto",
    ),
]


Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Also copy the images to DIR; existing files are kept."),
]


Format = Annotated[
    Literal["png", "jpg", "webp", "avif"] | None,
    typer.Option("--format", help="Format of the images in --out; the project keeps PNG.", show_default="png"),
]


NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", help="Leave the generation parameters out of the images in --out.")
]


NamePattern = Annotated[
    str | None,
    typer.Option(
        "--name-pattern",
        metavar="PATTERN",
        help="Names of the images in --out, for example {object}-{seed}-{index}.",
        show_default=file_patterns.DEFAULT,
    ),
]


SAMPLING: dict[str, tuple[Any, Any]] = {
    "n": (NumImages, None), "seed": (Seed, None), "width": (Width, None), "height": (Height, None), "size": (Size, None), "aspect": (Aspect, None),
    "steps": (Steps, None), "guidance": (Guidance, None), "negative": (Negative, None), "strength": (Strength, None),
    "style": (Style, None), "wildcards": (Wildcards, None), "lora": (Lora, None), "scheduler": (Scheduler, None),
    "format_": (Format, None), "no_metadata": (NoMetadata, False), "name_pattern": (NamePattern, None),
}  # fmt: skip


def resolve_sampling(ctx: "StageContext", sampling: Mapping[str, Any], **others: Any) -> Generate:
    """The settings of `generate`, with the options of `SAMPLING` and `others` above the other layers; of several seeds the first."""
    from objtune_cli.generation import image_size, variants

    width, height = image_size.parse_size(sampling["size"], sampling["width"], sampling["height"])
    if sampling["aspect"] is not None:
        if width or height:
            raise UsageError("--aspect and a size are both given", "give one of them")
        width, height = image_size.fit_aspect(ctx, image_size.parse_aspect(sampling["aspect"]))
    seeds = variants.parse_seeds(sampling["seed"])
    return ctx.settings.resolve(
        Generate,
        num_images=sampling["n"],
        seed=seeds[0] if seeds else None,
        width=width,
        height=height,
        num_inference_steps=sampling["steps"],
        guidance_scale=sampling["guidance"],
        negative_prompt=sampling["negative"],
        strength=sampling["strength"],
        style=",".join(sampling["style"]) if sampling["style"] else None,
        wildcards=str(sampling["wildcards"]) if sampling["wildcards"] else None,
        lora="".join(f"{each}\n" for each in sampling["lora"]) if sampling["lora"] else None,
        scheduler=sampling["scheduler"],
        image_format=sampling["format_"],
        metadata=False if sampling["no_metadata"] else None,
        name_pattern=sampling["name_pattern"],
        **others,
    )


def check_copies(sampling: Mapping[str, Any], out: Path | None) -> None:
    """Refuse options of copied images without the folder that they are copied to.

    Raises:
        UsageError: There is no folder.
    """
    options = {"--format": "format_", "--no-metadata": "no_metadata", "--name-pattern": "name_pattern"}
    used = [option for option, key in options.items() if sampling[key]]
    if used and out is None:
        raise UsageError(
            f"{used[0]} is for images that are copied, and there is no `--out`",
            "add `--out DIR`; the project keeps PNG files",
        )


def describe_prompts(ctx: "StageContext", results: "Sequence[StageResult]") -> dict[str, Any]:
    """The fields `prompts` and `loras` of the JSON document.

    Returns:
        `prompts`: for each result its ref, the prompt and the negative prompt as written, all choices made, their syntax and the first seed.
    """
    from objtune_cli.workflow.prompt_text import write_strengths

    configs = {result.ref: ctx.store.read_record(result.ref).config for result in results}
    prompts = [
        {
            "ref": str(ref),
            "prompt": write_strengths(config["prompt"], config.get("strengths", {})),
            "negative_prompt": config.get("negative_prompt", ""),
            "syntax": config.get("prompt_syntax", "plain"),
            "seed": config["seed"],
        }
        for ref, config in configs.items()
    ]
    return {"prompts": prompts} | describe_loras(ctx, results)


def resolve_variants(ctx: "StageContext", sampling: Mapping[str, Any], **others: Any) -> list[Generate]:
    """The settings for each seed of `--seed 1,2,3`; one for one seed."""
    from objtune_cli.generation import variants

    config = resolve_sampling(ctx, sampling, **others)
    return variants.over_seeds(config, variants.parse_seeds(sampling["seed"]), sampling["n"])


def describe_loras(ctx: "StageContext", results: "Sequence[StageResult]") -> dict[str, Any]:
    """The field `loras` of the JSON document: name, strength and hash of each LoRA beside the objects; {} without any."""
    loras = [ctx.store.read_record(result.ref).config.get("loras") for result in results[:1]]
    return {"loras": loras[0]} if loras and loras[0] else {}
