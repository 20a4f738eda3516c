"""The sampling loop of flow families whose pipelines in diffusers call the denoiser twice for guidance.

Here both halves are one batch, negative prompts first, as in the pipelines of Stable Diffusion. Regions, guidances and
late conditioning act on such batches.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from objtune_cli.models.conditioning import Conditioning

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel


@dataclass(slots=True)
class FlowPipeline:
    """Samples latents; called like a pipeline of diffusers that gets encoded prompts.

    Attributes:
        predict: Predicts velocities (B, C, h, w) for latents, noise levels sigma (B,) and the conditioning of B prompts.
    """

    model: "BaseModel"
    scheduler: Any
    predict: Callable[[Tensor, Tensor, Conditioning], Tensor]
    _guidance_scale: float = field(default=1.0, init=False)

    def set_progress_bar_config(self, **_: Any) -> None:
        """Do nothing: there is no progress bar."""

    @torch.no_grad()
    def __call__(
        self,
        *,
        condition: Conditioning,
        negative: Conditioning,
        latents: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]],
        **_: Any,
    ) -> SimpleNamespace:
        """Sample; `images` of the result are the latents.

        Args:
            condition, negative: Of the prompts and of the negative prompts, N samples each.
            latents: Initial latents (N, C, h, w).
            callback_on_step_end: May replace `latents`, and `condition` by that of the whole batch of the next calls.
        """
        scheduler, total = self.scheduler, self.model.num_train_timesteps
        self._guidance_scale = guidance_scale
        batch = Conditioning.concat([negative, condition]) if guidance_scale > 1 else condition
        scheduler.set_timesteps(num_inference_steps, device=latents.device)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        for index, t in enumerate(scheduler.timesteps):
            copies = len(batch) // len(latents)
            sigma = (t / total).to(latents.device).expand(len(batch))
            velocity = self.predict(latents.repeat(copies, 1, 1, 1), sigma, batch)
            if copies == 2:
                without, prompted = velocity.chunk(2)
                velocity = without + self._guidance_scale * (prompted - without)
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
            values = callback_on_step_end(self, index, t, {"latents": latents})
            latents, batch = values["latents"].to(latents), values.get("condition", batch)
        return SimpleNamespace(images=latents)
