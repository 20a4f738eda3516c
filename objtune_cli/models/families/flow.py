"""What families of rectified flows share: noising, target, noise levels of training, and the scheduler."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.models.families import samplers, schedulers
from objtune_cli.models.families.family import Family

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from objtune_cli.models.base_model import BaseModel

DEFAULT_CHANNELS = 16
"""Latent channels of a VAE whose config has none."""


class FlowFamily(Family):
    """A family whose denoiser predicts the velocity eps - z of z_t = (1 - sigma) z + sigma eps (arXiv:2403.03206)."""

    prediction = "flow"

    def latent_channels_of_vae(self, vae: Any) -> int:
        """As of every family, with another default."""
        return int(vae.get("latent_channels") or DEFAULT_CHANNELS)

    def load_scheduler(self, folder: Path, **overrides: Any) -> Any:
        """Load the flow-matching schedule; its shift comes from the config."""
        from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

        config = self.read_scheduler(folder, **overrides)
        return FlowMatchEulerDiscreteScheduler.from_config(
            {key: value for key, value in config.items() if not key.startswith("_")}
        )

    def load_sampler(self, folder: Path, **overrides: Any) -> Any:
        """None: `make_sampler` returns the sampler of flows."""
        return None

    def read_scheduler(self, folder: Path, **overrides: Any) -> dict[str, Any]:
        """Read a flow-matching config; other schedules are refused."""
        return schedulers.read_config(
            folder, {key: value for key, value in overrides.items() if key != "prediction_type"}, flow=True
        )

    def is_denoiser_file(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether tensors, by their original names, are those of a file with this family's denoiser alone."""
        return False

    def denoiser_size(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Size of the denoiser in such a file, for comparison with `configured_size`, and for messages."""
        raise NotImplementedError

    def configured_size(self, denoiser: Mapping[str, Any]) -> str:
        """Size of a denoiser by its config."""
        raise NotImplementedError

    def training_levels(self, model: "BaseModel", cells: int) -> "Tensor":
        """Noise levels sigma of the training timesteps, ascending, for images of `cells` latent cells."""
        levels: Tensor = model.scheduler.sigmas.flip(0)
        return levels

    def add_noise_and_target(
        self, model: "BaseModel", z: "Tensor", eps: "Tensor", t: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        """Interpolation z_t = (1 - s) z + s eps with target eps - z; t counts the training levels s upwards."""
        from objtune_cli.numerics import flow_matching

        levels = self.training_levels(model, z.shape[-2] * z.shape[-1])
        return flow_matching.add_noise(z, eps, levels, t), flow_matching.target(z, eps)

    def timesteps(self, count: int, total: int, generator: "Generator", *focus: Any) -> "Tensor":
        """Logit-normal as in the family's own training; `focus` is not used, because the shift already favours high noise."""
        from objtune_cli.numerics import flow_matching

        return flow_matching.timesteps(count, total, generator)

    def make_sampler(self, scheduler: Any, name: str, cells: int = 0) -> Any:
        """A new sampler, because sampling changes its state."""
        if name == "auto":
            return type(scheduler).from_config(scheduler.config)
        return samplers.make_flow_sampler(scheduler, name, self.title)
