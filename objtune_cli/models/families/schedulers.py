"""The noise schedule and the sampler that a base's scheduler config names: checked, opened, and replaced by DDIM, with a line that says so, where they cannot be drawn with."""

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
"""Samplers that bases are drawn with, to what A1111 calls them."""
OTHERS = (
    "DPMSolverSDEScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler", "IPNDMScheduler", "CosineDPMSolverMultistepScheduler", "SASolverScheduler",
    "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler",
)  # fmt: skip
"""Samplers on the same kind of noise that DDIM takes the place of."""
PREDICTIONS = ("epsilon", "v_prediction", "sample")
NO_SAMPLE = ("PNDM", "LMS", "Euler", "Heun", "KDPM2")
"""Starts of samplers that cannot draw with a denoiser that predicts the clean latents."""
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
"""What of a config says how latents are noised; the rest says how steps are taken."""
SCHEDULES = {"use_karras_sigmas": "Karras", "use_exponential_sigmas": "Exponential", "use_beta_sigmas": "Beta"}
"""Options of a sampler's config to what A1111 calls the schedule type."""


def read_config(folder: Path, said: Mapping[str, Any] | None = None, *, flow: bool = False) -> dict[str, Any]:
    """A base's scheduler config, with what is known better than it.

    Args:
        flow: Whether the family's noise is a flow's.

    Raises:
        IncompatibleError: It is of another kind of noise, or has a value that is not known. MissingError, DamagedError: see `folder.read_json`.
    """
    config = folders.read_json(folder, CONFIG) | dict(said or {})
    name = str(config.get("_class_name", ""))
    of_flow = (
        name.startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )
    if "EDM" in name or of_flow != flow:
        kind = name or "no class name"
        raise IncompatibleError(
            f"the base in {folder} is of another kind of noise than its family: its scheduler is {kind}",
            "give a base of its own kind; docs/reference/base-models.md lists them",
        )
    if not flow:
        _check(folder, name, config)
    return config


def _check(folder: Path, name: str, config: Mapping[str, Any]) -> None:
    where = f"the base in {folder} has a scheduler whose"
    if name and name not in SAMPLERS and name not in OTHERS:
        raise IncompatibleError(
            f"{where} class is not known: {name}",
            f"known: {', '.join(SAMPLERS)}; correct _class_name in {folder / CONFIG}",
        )
    for key, known in KNOWN.items():
        if config.get(key, known[0]) not in known and not (key == "beta_schedule" and config.get("trained_betas")):
            hint = (
                "`--set prediction_type=epsilon` or v_prediction says it by hand"
                if key == "prediction_type"
                else f"known: {', '.join(known)}"
            )
            raise IncompatibleError(f"{where} {key} is not known: {config[key]}", hint)
    for key in ("num_train_timesteps", "beta_start", "beta_end"):
        value = config.get(key, 0.5)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise IncompatibleError(
                f"{where} {key} is no positive number: {value!r}", f"correct it in {folder / CONFIG}"
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
    """The class that a base is drawn with: its own, or the one in its place."""
    own = str(config.get("_class_name") or "DDIMScheduler")
    if own.startswith("FlowMatch"):
        return "FlowMatchEulerDiscreteScheduler"
    return "DDIMScheduler" if why_replaced(config) else own


def why_replaced(config: Mapping[str, Any]) -> str:
    """Why a base's own sampler is not drawn with; empty where it is."""
    own = str(config.get("_class_name") or "DDIMScheduler")
    if own.startswith("FlowMatch"):
        return "" if own == "FlowMatchEulerDiscreteScheduler" else "it is not one that flows are drawn with here"
    if own not in SAMPLERS:
        return "it is not one that bases are drawn with here"
    if config.get("prediction_type") == "sample" and own.startswith(NO_SAMPLE):
        return "it cannot draw with a denoiser that predicts the clean latents"
    if config.get("rescale_betas_zero_snr") and own.startswith(
        ("PNDM", "LMS", "Heun", "KDPM2", "DEIS", "DPMSolverSinglestep")
    ):
        return "it does not know zero terminal SNR"
    if (own.startswith("LMS") or config.get("use_beta_sigmas")) and find_spec("scipy") is None:
        return "it needs scipy, which is not installed"
    return ""


def describe(config: Mapping[str, Any]) -> tuple[str, str]:
    """What A1111 calls the sampler that a base is drawn with, and the type of its schedule, empty for the usual one."""
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


def load_ddim(folder: Path, said: Mapping[str, Any]) -> Any:
    """DDIM on a base's noise schedule: what latents are noised by, and what draws where nothing else is asked for."""
    from diffusers.schedulers import DDIMScheduler

    config = read_config(folder, said)
    own = _open_own(config)
    if own is not None:  # what the file leaves out has the defaults of the class that it names
        config |= {key: own.config[key] for key in NOISE if key in own.config}
    # Latents are not pictures: configs that say nothing must not clip them.
    return DDIMScheduler.from_config(
        {key: value for key, value in config.items() if not key.startswith("_")} | {"clip_sample": False}
    )


def load_sampler(folder: Path, said: Mapping[str, Any]) -> Any:
    """The base's own sampler; None where that is DDIM, or DDIM takes its place."""
    config = read_config(folder, said)
    return None if why_replaced(config) else _open_own(config)


def _open_own(config: Mapping[str, Any]) -> Any:
    import diffusers

    name = str(config.get("_class_name") or "DDIMScheduler")
    if name == "DDIMScheduler" or name not in SAMPLERS or why_replaced(config).startswith("it needs"):
        return None
    found = getattr(diffusers, name).from_config(
        {key: value for key, value in config.items() if not key.startswith("_")}
    )
    if found.config.get("clip_sample"):
        found.register_to_config(clip_sample=False)
    return found


def choose(ddim: Any, name: str) -> Any:
    """The sampler of a name on a base's noise schedule: "ddim", "euler" or "dpm++".

    Raises:
        IncompatibleError: It cannot draw with what the denoiser predicts.
    """
    import diffusers

    classes = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "dpm++": "DPMSolverMultistepScheduler"}
    if classes[name].startswith(NO_SAMPLE) and ddim.config.prediction_type == "sample":
        raise IncompatibleError(
            f"the sampler {name} cannot draw with a denoiser that predicts the clean latents",
            "`--scheduler ddim` or `--scheduler dpm++`",
        )
    return getattr(diffusers, classes[name]).from_config(ddim.config)
