"""The generation parameters in an image file, in the text form of A1111, Forge and Civitai."""

import json
from collections.abc import Mapping
from types import MappingProxyType

from objtune_cli.config.sections import Generate
from objtune_cli.models.families import samplers
from objtune_cli.version import __version__
from objtune_cli.workflow.prompt_tags import escape_unread


def infotext(
    prompt: str,
    config: Generate,
    seed: int,
    size: tuple[int, int],
    model: str,
    base_sampler: tuple[str, str] = ("DDIM", ""),
    hashes: Mapping[str, str] = MappingProxyType({}),
    lora_tags: str = "",
    *,
    editing: bool = False,
) -> str:
    """The parameters of one image: prompt, negative prompt and a line of `Key: value` pairs.

    Args:
        size: Width and height, px.
        model: Name of the base.
        base_sampler: A1111's names of the base's own sampler and of its schedule type, empty for the usual type.
        hashes: Values of `Lora hashes` and `TI hashes`.
        lora_tags: `<lora:name:0.7>` of each LoRA beside the objects, at the end of the prompt.
        editing: Whether the prompt changed during sampling where it says so.

    Source: `infotext_utils.py` of A1111. Values that hold a comma, a colon or a line break are JSON strings.
    """
    sampler, schedule = base_sampler if config.scheduler == "auto" else samplers.describe_name(config.scheduler)
    pairs: dict[str, object] = {"Steps": config.num_inference_steps, "Sampler": sampler}
    if schedule:
        pairs["Schedule type"] = schedule
    pairs |= {"CFG scale": f"{config.guidance_scale:g}", "Seed": seed}
    if config.guidance_interval_high < 1:
        pairs["Guidance interval high"] = f"{config.guidance_interval_high:g}"
    if config.prompt_guidance_scale > 0:
        pairs["Prompt guidance"] = f"{config.prompt_guidance_scale:g}"
    if config.subject_conditioning_start < 1:
        pairs["Subject conditioning start"] = f"{config.subject_conditioning_start:g}"
    if config.autoguidance_scale > 0:
        pairs["Autoguidance"] = f"{config.autoguidance_scale:g}"
    if config.prompt_syntax == "comfyui":
        pairs["Prompt syntax"] = "ComfyUI"
    pairs |= {"Size": f"{size[0]}x{size[1]}", "Model": model, **hashes, "Version": f"objtune {__version__}"}
    written, negative = (
        escape_unread(text, config.prompt_syntax, editing=editing) for text in (prompt, config.negative_prompt)
    )
    lines = [" ".join(filter(None, (written, lora_tags))), *([f"Negative prompt: {negative}"] if negative else [])]
    return "\n".join([*lines, ", ".join(f"{key}: {_quote(str(value))}" for key, value in pairs.items())])


def _quote(text: str) -> str:
    """A value as A1111 reads it."""
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",:\n") else text
