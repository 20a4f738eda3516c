"""Check and load the noise schedule and the sampler in a base's scheduler config; DDIM replaces unsupported samplers."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from objtune_cli.errors import IncompatibleError
from objtune_cli.models.families import pipeline_folder as folders

CONFIG = "scheduler/scheduler_config.json"
SAMPLERS = {
    "DDIMScheduler": "DDIM", "DDPMScheduler": "DDPM", "PNDMScheduler": "PLMS", "LMSDiscreteScheduler": "LMS", "EulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a", "HeunDiscreteScheduler": "Heun", "KDPM2DiscreteScheduler": "DPM2",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a", "DPMSolverMultistepScheduler": "DPM++ 2M", "DPMSolverSinglestepScheduler": "DPM++ 2S",
    "DEISMultistepScheduler": "DEIS", "UniPCMultistepScheduler": "UniPC", "LCMScheduler": "LCM", "TCDScheduler": "TCD",
    "FlowMatchEulerDiscreteScheduler": "Euler",
}  # fmt: skip
"""Supported samplers to their names in A1111."""
OTHERS = (
    "DPMSolverSDEScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler", "IPNDMScheduler", "CosineDPMSolverMultistepScheduler", "SASolverScheduler",
    "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler",
)  # fmt: skip
"""Samplers on the same kind of noise that DDIM replaces."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
NO_SAMPLE = ("PNDM", "LMS", "Euler", "Heun", "KDPM2")
"""Prefixes of samplers that do not support a denoiser that predicts the clean latents."""
NO_ZERO_SNR = ("PNDM", "LMS", "Heun", "KDPM2", "DEIS", "DPMSolverSinglestep")
"""Prefixes of samplers that do not support zero terminal SNR."""
KNOWN = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"), "prediction_type": PREDICTIONS, "timestep_spacing": ("leading", "trailing", "linspace"),
}  # fmt: skip
NOISE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
"""Config keys of the noise schedule; the other keys belong to the sampler."""
SCHEDULES = {"use_karras_sigmas": "Karras", "use_exponential_sigmas": "Exponential", "use_beta_sigmas": "Beta"}
"""Options of a sampler's config to A1111's names of the schedule type."""


def read_config(folder: Path, overrides: Mapping[str, Any] | None = None, *, flow: bool = False) -> dict[str, Any]:
    """Read a base's scheduler config.

    Args:
        overrides: Keys that replace those of the file. flow: Whether the family is a flow.

    Raises:
        IncompatibleError: Another kind of noise than the family's, or an unknown value.
        MissingError, DamagedError: As `pipeline_folder.read_json`.
    """
    config = folders.read_json(folder, CONFIG) | dict(overrides or {})
    name = str(config.get("_class_name", ""))
    of_flow = (
        name.startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )
    if "EDM" in name or of_flow != flow:
        kind = name or "no class name"
        raise IncompatibleError(
            f"the base in {folder} has another kind of noise than its family: its scheduler is {kind}",
            "docs/reference/base-models.md lists the supported bases",
        )
    if not flow:
        _check(folder, name, config)
    return config


def _check(folder: Path, name: str, config: Mapping[str, Any]) -> None:
    where = f"the base in {folder} has a scheduler whose"
    if name and name not in SAMPLERS and name not in OTHERS:
        raise IncompatibleError(
            f"{where} class is unknown: {name}",
            f"known: {', '.join(SAMPLERS)}; correct _class_name in {folder / CONFIG}",
        )
    for key, choices in KNOWN.items():
        if config.get(key, choices[0]) not in choices and not (key == "beta_schedule" and config.get("trained_betas")):
            hint = (
                "set it with `--set prediction_type=epsilon` or v_prediction"
                if key == "prediction_type"
                else f"known: {', '.join(choices)}"
            )
            raise IncompatibleError(f"{where} {key} is unknown: {config[key]}", hint)
    for key in ("num_train_timesteps", "beta_start", "beta_end"):
        value = config.get(key, 0.5)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise IncompatibleError(
                f"{where} {key} is not a positive number: {value!r}", f"correct it in {folder / CONFIG}"
            )
        if key.startswith("beta") and value >= 1:
            raise IncompatibleError(f"{where} {key} is not below 1: {value!r}", f"correct it in {folder / CONFIG}")
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    if betas is not None and not (
        isinstance(betas, list) and len(betas) == steps and all(isinstance(b, int | float) and 0 < b < 1 for b in betas)
    ):
        raise IncompatibleError(
            f"{where} trained_betas are not {steps:g} numbers between 0 and 1", f"correct them in {folder / CONFIG}"
        )


def name_sampler(config: Mapping[str, Any]) -> str:
    """The class of the sampler that a base uses: its own, or the replacement."""
    own = str(config.get("_class_name") or "DDIMScheduler")
    if own.startswith("FlowMatch"):
        return "FlowMatchEulerDiscreteScheduler"
    return "DDIMScheduler" if why_replaced(config) else own


def why_replaced(config: Mapping[str, Any]) -> str:
    """The reason why a base's own sampler is replaced; empty if it is used."""
    own = str(config.get("_class_name") or "DDIMScheduler")
    if own.startswith("FlowMatch"):
        return "" if own == "FlowMatchEulerDiscreteScheduler" else "it is not supported for flows"
    if own not in SAMPLERS:
        return "it is not supported"
    if config.get("prediction_type") == "sample" and own.startswith(NO_SAMPLE):
        return "it does not support a denoiser that predicts the clean latents"
    if config.get("rescale_betas_zero_snr") and own.startswith(NO_ZERO_SNR):
        return "it does not support zero terminal SNR"
    if (own.startswith("LMS") or config.get("use_beta_sigmas")) and find_spec("scipy") is None:
        return "it needs scipy, which is not installed"
    return ""


def describe(config: Mapping[str, Any]) -> tuple[str, str]:
    """A1111's names of the base's sampler and of its schedule type, which is empty for the default."""
    name = name_sampler(config)
    called = SAMPLERS[name]
    if name == "DPMSolverMultistepScheduler":
        order = "3M" if config.get("solver_order") == 3 else "2M"
        kind = str(config.get("algorithm_type", "dpmsolver++"))
        called = f"DPM++ {order}" if "++" in kind else f"DPM-Solver {order}"
        called += " SDE" if kind.startswith("sde") else ""
    elif config.get("algorithm_type") == "sde-dpmsolver++":
        called += " SDE"
    same = name == config.get("_class_name")
    return called, next((kind for key, kind in SCHEDULES.items() if config.get(key)), "") if same else ""


def load_ddim(folder: Path, overrides: Mapping[str, Any]) -> Any:
    """DDIM on a base's noise schedule: it adds noise in training, and is the default sampler."""
    from diffusers.schedulers import DDIMScheduler

    config = read_config(folder, overrides)
    own = _open_own(config)
    if own is not None:  # keys missing in the file have the defaults of its class
        config |= {key: own.config[key] for key in NOISE if key in own.config}
    # The default of `clip_sample` is for images; latents must not be clipped.
    return DDIMScheduler.from_config(
        {key: value for key, value in config.items() if not key.startswith("_")} | {"clip_sample": False}
    )


def load_sampler(folder: Path, overrides: Mapping[str, Any]) -> Any:
    """The base's own sampler; None if that is DDIM, or DDIM replaces it."""
    config = read_config(folder, overrides)
    return None if why_replaced(config) else _open_own(config)


def _open_own(config: Mapping[str, Any]) -> Any:
    import diffusers

    name = str(config.get("_class_name") or "DDIMScheduler")
    if name == "DDIMScheduler" or name not in SAMPLERS or why_replaced(config).startswith("it needs"):
        return None
    sampler = getattr(diffusers, name).from_config(
        {key: value for key, value in config.items() if not key.startswith("_")}
    )
    if sampler.config.get("clip_sample"):
        sampler.register_to_config(clip_sample=False)
    return sampler
