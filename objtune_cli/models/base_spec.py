"""The description of a base model on this machine, read from its configs without opening any weights."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from objtune_cli.models import families
from objtune_cli.models.families import Family, schedulers, single_file, vae_override
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.families.model_kind import PictureInput

MAX_BYTES_TO_LOAD_TWICE = 256_000_000
"""Size of the largest base of which one process may open several copies, bytes."""
FIRST_SAMPLERS = ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler")
"""The samplers of the first versions; a scene's settings leave them out, so that older records stay equal."""
PUBLISHED_CONFIG = {"block_out_channels": range(4), "patch_size": 2}
"""The defaults of diffusers' classes, for denoiser configs that leave these keys out."""


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """A base model on this machine.

    Attributes:
        id: The name in records: an alias, a hub id, or the name of the folder or file.
        folder: The folder of its configs. fingerprint: SHA-256 of its configs and weights.
        clip_path: A CLIP with a vision encoder that shares the token space, folder or file, or None.
        clip_2_path: The same for a second text encoder.
        clip_model: The names of these CLIPs, separated by a comma, where they lie outside of the base's folder.
        weights: A single-file checkpoint; `folder` then holds the configs of its family.
        prediction: What the denoiser predicts, where the scheduler's config does not tell.
        prediction_override: The same, where the user sets it.
        schedule: Keys of the scheduler's config that replace those of the file.
        zero_snr: Whether a single file is marked as trained with zero terminal SNR.
        vae: Folder or file of a VAE in place of its own.
        notes: Remarks for the user, one line each.
        distilled_from: The base to train instead, if it was distilled to few steps; "" if it was not.
        picture_input: "inpainting" or "editing" if its denoiser takes a picture too; only `place` draws with it.
        sampling, training: Settings that suit it. known_classes: The classes that it knows, if it lists them.
        toybox_dial: The dial of the drawn world that it was trained on, or "".
    """

    id: str
    folder: Path
    fingerprint: str
    clip_path: Path | None
    sampling: dict[str, float]
    training: dict[str, Any]
    known_classes: tuple[str, ...]
    toybox_dial: str
    family: Family = families.SD1
    clip_2_path: Path | None = None
    clip_model: str = ""
    weights: Path | None = None
    prediction: str = ""
    prediction_override: str = ""
    schedule: dict[str, Any] = field(default_factory=dict)
    zero_snr: bool = False
    vae: Path | None = None
    notes: tuple[str, ...] = ()
    picture_input: PictureInput = ""
    distilled_from: str = ""

    def sampling_kwargs(self) -> dict[str, Any]:
        """Return its sampling settings as fields of `generation.settings.SamplingSettings`."""
        own = self.sampling
        return {
            "num_inference_steps": int(own["num_inference_steps"]),
            "guidance_scale": own["guidance_scale"],
            "guidance_interval_high": own.get("guidance_interval_high", 1.0),
        }

    def object_sampling_kwargs(self) -> dict[str, Any]:
        """Return the further settings for images of trained objects, as fields of `SamplingSettings`."""
        return {
            "prompt_guidance_scale": self.prompt_guidance_scale(),
            "subject_conditioning_start": self.subject_conditioning_start(),
        }

    def prompt_guidance_scale(self, setting: float = -1.0) -> float:
        """Return the weight of the base's own prompt direction; a negative setting selects the base's value."""
        return setting if setting >= 0 else float(self.sampling.get("prompt_guidance_scale", 0.0))

    def subject_conditioning_start(self, setting: float = -1.0) -> float:
        """Return the noise level below which objects condition a sample; a negative setting selects the base's value."""
        return setting if setting >= 0 else float(self.sampling.get("subject_conditioning_start", 1.0))

    def autoguidance_scale(self, setting: float = -1.0) -> float:
        """Return the autoguidance of a refinement pass; a negative setting selects the base's value."""
        return setting if setting >= 0 else float(self.sampling.get("autoguidance_scale", 0.0))

    @property
    def num_latent_cells(self) -> int:
        """Latent cells of an image of its resolution."""
        return self.family.training_side(self._config(self.family.denoiser), self._config("vae")) ** 2

    @property
    def scheduler(self) -> dict[str, Any]:
        """The config of its scheduler, with `schedule` applied."""
        return self.family.read_scheduler(self.folder, **self.schedule)

    @property
    def sampler(self) -> tuple[str, str]:
        """A1111's names of its sampler and of the sampler's schedule type."""
        return schedulers.describe(self.scheduler)

    def sampler_settings(self) -> dict[str, str]:
        """Return the sampler for a scene's settings; empty for the samplers of the first versions."""
        name = schedulers.name_sampler(self.scheduler)
        return {} if name in FIRST_SAMPLERS else {"sampler": name}

    @property
    def vae_scale_factor(self) -> int:
        """Image pixels per latent cell, along one side."""
        return self.family.cell_size(self._config("vae"))

    @property
    def resolution(self) -> int:
        """Side of its training images, px."""
        return math.isqrt(self.num_latent_cells) * self.vae_scale_factor

    @property
    def size_multiple(self) -> int:
        """The number that divides every valid image side, px."""
        config = PUBLISHED_CONFIG | self._config(self.family.denoiser)
        return self.vae_scale_factor * self.family.latent_multiple(SimpleNamespace(**config))

    @property
    def largest_side(self) -> int:
        """Longest valid image side, px: a transformer has a limited number of position embeddings."""
        positions = self._config(self.family.denoiser).get("pos_embed_max_size")
        return int(positions) * self.size_multiple if positions else 8192

    @property
    def fits_twice_in_memory(self) -> bool:
        """Whether one process may open several copies: its denoiser is smaller than `MAX_BYTES_TO_LOAD_TWICE`."""
        files = [self.weights] if self.weights else (self.folder / self.family.denoiser).glob("*.safetensors")
        return sum(file.stat().st_size for file in files) < MAX_BYTES_TO_LOAD_TWICE

    def record(self) -> dict[str, str]:
        """Return the base's entry in a record; bases of the first family have no `family` key."""
        own = {"id": self.id, "fingerprint": self.fingerprint}
        own |= {"vae": f"{self.vae.parent.name}/vae" if self.vae.name == "vae" else self.vae.name} if self.vae else {}
        own |= {"noise": "zero-snr"} if self.zero_snr else {}
        if self.family is families.SD1:
            return own | ({"prediction": self.prediction_override} if self.prediction_override else {})
        schedule = json.loads((self.folder / "scheduler" / "scheduler_config.json").read_bytes())
        prediction = self.prediction or str(schedule.get("prediction_type", self.family.prediction))
        return own | {"family": self.family.name, "prediction": prediction}

    def _config(self, part: str) -> dict[str, Any]:
        if part == "vae" and self.vae is not None:
            published = single_file.LAYOUTS / self.family.name
            return vae_override.read_config(self.vae) or folders.read_json(published, "vae/config.json")
        return folders.read_json(self.folder, f"{part}/config.json")
