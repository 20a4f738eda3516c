"""LoRAs that draw in few steps: recognised by name, with the sampler, steps and guidance that they were distilled for.

Sources: the model cards of LCM-LoRA (arXiv:2311.05556), TCD (arXiv:2402.19159), SDXL-Lightning (arXiv:2402.13929), Hyper-SD (arXiv:2404.13686),
DMD2 (arXiv:2405.14867), SDXL Turbo (arXiv:2311.17042) and Flash Diffusion (arXiv:2406.02347).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

TITLES = ("modelspec.title", "ss_output_name")
"""Fields of a file's header that may have its first name."""
CFG_SCALE = 5.0
"""Guidance of the LoRAs that were distilled for guidance (`CFG` in their names)."""


@dataclass(frozen=True, slots=True)
class FastLora:
    """What a LoRA of few steps needs.

    Attributes:
        title: Name of the method. strength: Of the LoRA, where the user gives none.
    """

    title: str
    scheduler: str
    num_inference_steps: int
    guidance_scale: float = 1.0
    strength: float = 1.0


_METHODS = (
    (r"(?<![a-z])lcm(?![a-z])", FastLora("LCM", "lcm", 4)),
    (r"(?<![a-z])dmd2?(?![a-z])", FastLora("DMD2", "lcm_trailing", 4)),
    (r"(?<![a-z])tcd(?![a-z])", FastLora("TCD", "tcd", 4)),
    (r"flash[-_ ]?(?:sd|pixart)", FastLora("Flash Diffusion", "lcm", 4)),
    (r"(?:sd|xl)[-_ ]?lightning|lightning[-_ ]?\d+[-_ ]?step", FastLora("Lightning", "euler_trailing", 4)),
    (r"hyper[-_ ]?sd|hyper[-_ ]?\d+[-_ ]?step", FastLora("Hyper-SD", "ddim_trailing", 8)),
    (r"(?:sd|xl|3\.5|3\.5m|3m)[-_ ]?turbo|turbo[-_ ]?lora", FastLora("Turbo", "euler_a_trailing", 4)),
)  # fmt: skip
"""Patterns of names; a style that is called lightning or turbo does not match."""
FLOW_STEPS = {"Turbo": 8}
HYPER_SD3_STRENGTH = 0.125


def recognize(name: str, metadata: Mapping[str, str], *, is_flow: bool) -> FastLora | None:
    """The needs of a LoRA, by its name or the names in its header; None if it is none of few steps.

    Args:
        is_flow: Whether the base is a flow, which has samplers of its own.
    """
    for text in (name, *(metadata.get(key, "") for key in TITLES)):
        lower = text.lower()
        method = next((fast for pattern, fast in _METHODS if re.search(pattern, lower)), None)
        if method is not None:
            return _adapt(method, lower, is_flow=is_flow)
    return None


def _adapt(fast: FastLora, name: str, *, is_flow: bool) -> FastLora:
    """A method's needs with the number of steps and the guidance in the name of a file."""
    counted = re.search(r"(\d+)[-_ ]?steps?", name)
    steps = int(counted[1]) if counted and 1 <= int(counted[1]) <= 64 else fast.num_inference_steps
    scheduler, strength = fast.scheduler, fast.strength
    if fast.title == "Hyper-SD" and steps == 1:
        scheduler = "tcd"
    if is_flow:
        scheduler = "lcm" if scheduler.startswith("lcm") else "euler"
        steps = steps if counted else FLOW_STEPS.get(fast.title, steps)
        strength = HYPER_SD3_STRENGTH if fast.title == "Hyper-SD" else strength
    has_guidance = re.search(r"(?<![a-z])cfg(?![a-z])", name)
    return FastLora(fast.title, scheduler, steps, CFG_SCALE if has_guidance else fast.guidance_scale, strength)
