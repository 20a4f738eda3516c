"""The names of samplers: those of the setting `generate.scheduler`, and the spellings of A1111, ComfyUI and diffusers."""

import difflib
import re

SAMPLERS = (
    "ddim", "ddpm", "pndm", "lms", "euler", "euler_a", "heun", "dpm2", "dpm2_a", "dpm++", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s", "dpmpp_sde",
    "deis", "unipc", "lcm", "tcd",
)  # fmt: skip
"""Samplers; `dpm++` is DPM++ 2M, also written `dpmpp_2m`."""
SCHEDULES = ("karras", "exponential", "beta", "trailing")
"""Noise levels or timesteps, behind the sampler's name and `_`."""
HELP = "a sampler, optionally followed by _karras, _exponential, _beta or _trailing where it has that schedule"
_LONG = {"dpm++": "dpmpp_2m"}
_SPELLINGS = {
    "plms": "pndm", "euler_ancestral": "euler_a", "k_euler": "euler", "k_euler_a": "euler_a", "dpmpp": "dpm++", "dpmpp_2m": "dpm++", "dpm_2": "dpm2",
    "dpm_2_a": "dpm2_a", "dpm_2_ancestral": "dpm2_a", "dpm2_ancestral": "dpm2_a", "uni_pc": "unipc", "dpm_solver_multistep": "dpm++", "dpm_solver_singlestep": "dpmpp_2s",
    "euler_discrete": "euler", "euler_ancestral_discrete": "euler_a", "heun_discrete": "heun", "lms_discrete": "lms", "kdpm2_discrete": "dpm2",
    "kdpm2_ancestral_discrete": "dpm2_a", "deis_multistep": "deis", "uni_pc_multistep": "unipc", "flow_match_euler_discrete": "euler", "flow_match_heun_discrete": "heun", "flow_match_lcm": "lcm", "base": "auto",
}  # fmt: skip
"""Other names of samplers, in lower case with `_` between the words."""
_SCHEDULE_SPELLINGS = {"sgm_uniform": "trailing", "simple": "", "normal": "", "uniform": "", "automatic": ""}


def split_name(name: str) -> tuple[str, str]:
    """The sampler and the schedule of a setting's value; the schedule is "" for the sampler's own."""
    sampler, _, schedule = name.rpartition("_")
    if schedule not in SCHEDULES:
        return name, ""
    return next((short for short, long in _LONG.items() if long == sampler), sampler), schedule


def join_name(sampler: str, schedule: str) -> str:
    """The inverse of `split_name`."""
    return f"{_LONG.get(sampler, sampler)}_{schedule}" if schedule else sampler


def read_scheduler(text: str) -> str:
    """The setting's value for any spelling: "DPM++ 2M Karras" is `dpmpp_2m_karras`, "Euler a" is `euler_a`.

    Raises:
        ValueError: There is no such sampler; says what there is.
    """
    plain = re.sub(r"[\s_-]+", "_", _split_words(text.strip()).lower().replace("++", "pp")).strip("_")
    if plain == "auto":
        return plain
    endings = {**{each: each for each in SCHEDULES}, **_SCHEDULE_SPELLINGS}
    ending = next((each for each in endings if plain.endswith(f"_{each}")), "")
    sampler = plain.removesuffix(f"_{ending}") if ending else plain
    sampler = _SPELLINGS.get(sampler, sampler)
    if sampler not in (*SAMPLERS, "auto") or (sampler == "auto" and ending):
        near = difflib.get_close_matches(plain, [*SAMPLERS, *_SPELLINGS], 1)
        meant = f"did you mean {_SPELLINGS.get(near[0], near[0])}? " if near else ""
        raise ValueError(f"{meant}auto, {', '.join(SAMPLERS)}; {HELP}")
    return join_name(sampler, endings.get(ending, ""))


def _split_words(text: str) -> str:
    """`EulerAncestralDiscreteScheduler` as separate words; other texts stay."""
    if not text.endswith("Scheduler"):
        return text
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text.removesuffix("Scheduler"))
