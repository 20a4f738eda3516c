"""The samplers of diffusers by name, on the noise schedule of a base: U-Nets with discrete noise levels, and flows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from inspect import signature
from typing import Any

from objtune_cli.errors import IncompatibleError, ResourceError
from objtune_cli.models.families.schedulers import NO_SAMPLE, NO_ZERO_SNR


@dataclass(frozen=True, slots=True)
class Sampler:
    """One sampler of diffusers.

    Attributes:
        label: A1111's name. scheduler: The class. options: Its settings that differ from the base's config.
        flow: The class for flows; "" if there is none.
        schedules: Whether the class computes other noise levels: Karras, exponential and beta.
        trailing: Whether its timesteps may end at the last one (`timestep_spacing`).
    """

    label: str
    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    flow: str = ""
    schedules: bool = True
    trailing: bool = True


_MULTISTEP, _SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_SDE = {"algorithm_type": "sde-dpmsolver++"}
SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler("DDIM", "DDIMScheduler", schedules=False),
    "ddpm": Sampler("DDPM", "DDPMScheduler", schedules=False),
    "pndm": Sampler("PLMS", "PNDMScheduler", {"skip_prk_steps": True}, schedules=False),
    "lms": Sampler("LMS", "LMSDiscreteScheduler"),
    "euler": Sampler("Euler", "EulerDiscreteScheduler", flow="FlowMatchEulerDiscreteScheduler"),
    "euler_a": Sampler("Euler a", "EulerAncestralDiscreteScheduler", schedules=False),
    "heun": Sampler("Heun", "HeunDiscreteScheduler", flow="FlowMatchHeunDiscreteScheduler"),
    "dpm2": Sampler("DPM2", "KDPM2DiscreteScheduler"),
    "dpm2_a": Sampler("DPM2 a", "KDPM2AncestralDiscreteScheduler"),
    "dpm++": Sampler("DPM++ 2M", _MULTISTEP, flow=_MULTISTEP),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", _MULTISTEP, _SDE, flow=_MULTISTEP),
    "dpmpp_3m_sde": Sampler("DPM++ 3M SDE", _MULTISTEP, _SDE | {"solver_order": 3}, flow=_MULTISTEP),
    "dpmpp_2s": Sampler("DPM++ 2S", _SINGLESTEP, flow=_SINGLESTEP, trailing=False),
    "dpmpp_sde": Sampler("DPM++ SDE", _SINGLESTEP, _SDE, flow=_SINGLESTEP, trailing=False),
    "deis": Sampler("DEIS", "DEISMultistepScheduler", flow="DEISMultistepScheduler"),
    "unipc": Sampler("UniPC", "UniPCMultistepScheduler", flow="UniPCMultistepScheduler"),
    "lcm": Sampler("LCM", "LCMScheduler", flow="FlowMatchLCMScheduler", schedules=False),
    "tcd": Sampler("TCD", "TCDScheduler", schedules=False, trailing=False),
}
"""`generate.scheduler` without its schedule to the sampler."""
SCHEDULES = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta", "trailing": "SGM Uniform"}
"""The end of a name to A1111's name of the schedule type."""
_LONG = {"dpmpp_2m": "dpm++"}
FLOW_EULER = "FlowMatchEulerDiscreteScheduler"
"""The only sampler of flows with other noise levels."""


def split_name(name: str) -> tuple[str, str]:
    """The sampler and the schedule of a name such as `euler_karras`."""
    sampler, _, schedule = name.rpartition("_")
    return (_LONG.get(sampler, sampler), schedule) if schedule in SCHEDULES else (name, "")


def describe_name(name: str) -> tuple[str, str]:
    """A1111's names of a sampler and of its schedule type, which is empty for the default."""
    sampler, schedule = split_name(name)
    return SAMPLERS[sampler].label, SCHEDULES.get(schedule, "")


def make_sampler(ddim: Any, name: str) -> Any:
    """A sampler on the noise schedule of a U-Net's base.

    Args:
        ddim: DDIM on that schedule.

    Raises:
        IncompatibleError: The sampler lacks that schedule, or does not support the base's noise or prediction.
        ResourceError: scipy is needed and not installed.
    """
    import diffusers

    named, schedule = split_name(name)
    sampler = SAMPLERS[named]
    if schedule and not (sampler.trailing if schedule == "trailing" else sampler.schedules):
        raise _lacks_schedule(named, schedule)
    if sampler.scheduler.startswith(NO_SAMPLE) and ddim.config.prediction_type == "sample":
        raise IncompatibleError(
            f"the sampler {name} does not support a denoiser that predicts the clean latents",
            "use `--scheduler ddim` or `--scheduler dpm++`",
        )
    if sampler.scheduler.startswith(NO_ZERO_SNR) and ddim.config.get("rescale_betas_zero_snr"):
        raise IncompatibleError(
            f"the sampler {name} does not support zero terminal SNR, with which this base was trained",
            "use `--scheduler ddim`, `euler` or `dpm++`",
        )
    _check_scipy(name, sampler, schedule)
    options = _schedule_options(schedule)
    if (
        schedule and sampler.scheduler == "LCMScheduler"
    ):  # it spaces its steps within this number, and ignores the spacing
        options = {"original_inference_steps": int(ddim.config.num_train_timesteps)}
    return getattr(diffusers, sampler.scheduler).from_config(ddim.config, **sampler.options, **options)


def make_flow_sampler(scheduler: Any, name: str, title: str) -> Any:
    """A sampler on the shifted noise levels of a flow.

    Args:
        scheduler: Euler's on those levels. title: Name of the family.

    Raises:
        IncompatibleError: There is no such sampler for flows. ResourceError: scipy is needed and not installed.
    """
    import diffusers

    named, schedule = split_name(name)
    sampler = SAMPLERS[named]
    if not sampler.flow:
        usable = ", ".join(each for each, one in SAMPLERS.items() if one.flow)
        raise IncompatibleError(f"{title} does not support the sampler {name}", f"samplers of flows: {usable}")
    if schedule == "trailing" or (schedule and sampler.flow != FLOW_EULER):
        raise _lacks_schedule(named, schedule)
    _check_scipy(name, sampler, schedule)
    kind, config = getattr(diffusers, sampler.flow), scheduler.config
    if sampler.flow.startswith("FlowMatch"):
        parameters = set(signature(kind.__init__).parameters)
        own = {key: value for key, value in config.items() if key in parameters}
        return kind(**own | _schedule_options(schedule))
    return kind(
        num_train_timesteps=config.num_train_timesteps, prediction_type="flow_prediction", use_flow_sigmas=True,
        flow_shift=config.shift, **sampler.options,
    )  # fmt: skip


def without_shift(scheduler: Any) -> Any:
    """A flow's scheduler with levels that are not shifted."""
    return type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False, shift=1.0)


def shift_by_steps(sampler: Any, shift: Callable[[int], float]) -> Any:
    """A sampler from `make_flow_sampler` whose noise levels are shifted by s -> a s / (1 + (a - 1) s).

    Args:
        shift: Number of steps to the factor a.
    """
    kind = type(sampler)
    shifted: Any = type(kind.__name__, (_ShiftedBySteps, kind), {})
    copied = shifted.from_config(sampler.config)
    copied.shift_of_steps = shift
    return copied


class _ShiftedBySteps:
    """Mixin of a flow sampler: the shift is set with the number of steps."""

    shift_of_steps: Callable[[int], float]

    def set_timesteps(self: Any, num_inference_steps: int, device: Any = None, **_: Any) -> None:
        """Set the timesteps as the class does, from levels 1, 1 - 1/n, ... 1/n where it takes levels."""
        import numpy as np

        shift, own = self.shift_of_steps(num_inference_steps), super().set_timesteps  # type: ignore[misc]
        if hasattr(self, "set_shift"):
            self.set_shift(shift)
            levels = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
            own(num_inference_steps, device=device, sigmas=levels.tolist())
            return
        self.register_to_config(**{"flow_shift" if "flow_shift" in self.config else "shift": shift})
        own(num_inference_steps, device=device)


def draws_noise(sampler: Any) -> bool:
    """Whether a sampler of flows adds noise at each step, for which diffusers' pipeline passes no generator."""
    return type(sampler).__name__ == "FlowMatchLCMScheduler" or "sde" in str(sampler.config.get("algorithm_type", ""))


def _schedule_options(schedule: str) -> dict[str, Any]:
    if not schedule:
        return {}
    return {"timestep_spacing": "trailing"} if schedule == "trailing" else {f"use_{schedule}_sigmas": True}


def _lacks_schedule(sampler: str, schedule: str) -> IncompatibleError:
    return IncompatibleError(
        f"the sampler {sampler} has no schedule {schedule}", f"use `--scheduler {sampler}`, or another sampler"
    )


def _check_scipy(name: str, sampler: Sampler, schedule: str) -> None:
    if (schedule == "beta" or sampler.scheduler.startswith("LMS")) and find_spec("scipy") is None:
        raise ResourceError(f"the sampler {name} needs scipy, which is not installed", "`pip install scipy`")
