"""The settings of sampling as one value."""

from dataclasses import dataclass

from objtune_cli.config.sections import Generate


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Settings of sampling images from noise.

    Attributes:
        num_inference_steps: Steps of the scheduler, 1 or more.
        guidance_scale: Scale of classifier-free guidance; at 1 or less the negative prompt has no effect.
        scheduler: `base` for the scheduler of the base's folder, or a name that `BaseModel.pipeline` knows.
        negative_prompt: Prompt that guidance moves away from.
        guidance_interval_high: Noise level below which guidance acts, fraction of the schedule. Above it, where poses and places are decided, the prompt
            acts alone and keeps their variety (limited-interval guidance, arXiv:2404.07724).
        prompt_guidance_scale: Scale of the frozen base's prediction for the words around the objects (`generation.guidance`); 0: none.
        subject_conditioning_start: Noise level below which the LoRAs and tokens of objects act, fraction of the schedule. Above it the frozen base
            samples their classes (delayed subject conditioning, arXiv:2305.10431, with the frozen base in place of the adapter's): it knows thousands
            of poses, an adapter has seen one.
        autoguidance_scale: Scale of the difference between the adapter's and the frozen base's prediction (`generation.guidance`); 0: none.
        prompt_editing: Whether `[a:b:0.5]` and `[a|b]` change the prompt between steps, see `models.prompt_editing`.
        height, width: Size of the images, px, multiples of the base's unit; 0: the base's own size.
    """

    num_inference_steps: int
    guidance_scale: float
    scheduler: str = "auto"
    negative_prompt: str = ""
    guidance_interval_high: float = 1.0
    prompt_guidance_scale: float = 0.0
    subject_conditioning_start: float = 1.0
    autoguidance_scale: float = 0.0
    height: int = 0
    width: int = 0
    prompt_editing: bool = False

    @classmethod
    def from_config(cls, config: Generate) -> "SamplingSettings":
        """The settings of a `Generate` section in which nothing is left to the base."""
        return cls(
            config.num_inference_steps,
            config.guidance_scale,
            config.scheduler,
            config.negative_prompt,
            config.guidance_interval_high,
            config.prompt_guidance_scale,
            config.subject_conditioning_start,
            config.autoguidance_scale,
            config.height,
            config.width,
        )
