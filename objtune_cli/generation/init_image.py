"""An image that sampling starts from, in place of noise: variations of a picture (SDEdit, arXiv:2108.01073)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.config.sections import Generate
from objtune_cli.generation import image_size
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.images import photo
from objtune_cli.store.kinds.scene import PHOTO_ROLE
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel


@dataclass(frozen=True, slots=True)
class InitImage:
    """An image to start from.

    Attributes:
        rgb: (H, W, 3) uint8. sha256: Digest of its file.
        change: Fraction of the noise schedule that it is sampled again from, in (0, 1].
    """

    rgb: "np.ndarray"
    sha256: str
    change: float

    @property
    def inputs(self) -> dict[str, dict[str, str]]:
        """The file as an input of a scene's record."""
        return {PHOTO_ROLE: {"ref": "", "sha256": self.sha256}}

    def fitted(self, width: int, height: int) -> "InitImage":
        """The middle of the image at another size, px."""
        import numpy as np
        from PIL import Image, ImageOps

        middle = ImageOps.fit(Image.fromarray(self.rgb), (width, height), Image.Resampling.LANCZOS)
        return replace(self, rgb=np.asarray(middle))


def read(ctx: StageContext, config: Generate) -> tuple[InitImage | None, Generate]:
    """The image of `config.init_image`, and the settings with a size of its aspect ratio where the user chose none; (None, config) without an image.

    Raises:
        InputError: The file is not a picture.
    """
    if not config.init_image:
        return None, config
    path = Path(config.init_image)
    picture = photo.read(path)
    for note in picture.notes:
        ctx.report.note(f"{path.name}: {note}")
    if not (config.width or config.height):
        width, height = image_size.fit_aspect(ctx, picture.rgb.shape[1] / picture.rgb.shape[0])
        config = replace(config, width=width, height=height)
    return InitImage(picture.rgb, picture.sha256, config.change), config


def resample_image(
    model: "BaseModel",
    original: InitImage,
    prompt: str,
    seeds: list[int],
    settings: SamplingSettings,
    on_step: Callable[[int, int], None],
) -> "Tensor":
    """Scaled latents (N, C, h, w) of new versions of an image, one per seed; see `sampling.resample`."""
    import torch

    from objtune_cli.generation.sampling import resample

    pixels = torch.from_numpy(original.rgb.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latents = model.encode_image(pixels).float().cpu().expand(len(seeds), -1, -1, -1)
    return resample(model, latents, prompt, seeds, original.change, settings, on_step)
