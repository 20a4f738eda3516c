"""Names that files of other tools use for a family's base model, layers and token vectors."""

from collections.abc import Mapping
from typing import Any, ClassVar

from objtune_cli.lora import flux2_names, fused_layers, mmdit_names, unet_names
from objtune_cli.lora.fused_layers import OriginalName
from objtune_cli.models.families.family import Family

LoraPair = tuple[Any, Any]
"""Down projection (r, in) and up projection (out, r) of a layer."""


class FileNames:
    """The names for one family; this class has those that U-Nets share.

    Attributes:
        architecture: `modelspec.architecture` of the base model.
        version: `ss_base_model_version` in kohya's files.
        kohya_network_module: `ss_network_module` in kohya's files.
        hub_tag: Tag of the family on the Hugging Face hub.
        tools_read_embeddings: Whether A1111, Forge and ComfyUI read embedding files of the family.
        embedding_keys: Keys of a token's vectors in an embedding file, one per text encoder; empty if the token is the only key.
    """

    architecture: ClassVar[str]
    version: ClassVar[str]
    kohya_network_module: ClassVar[str] = "networks.lora"
    hub_tag: ClassVar[str] = "stable-diffusion"
    tools_read_embeddings: ClassVar[bool] = True
    embedding_keys: ClassVar[tuple[str, ...]] = ()

    def to_kohya(self, layers: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
        """Rename the denoiser's LoRA layers for kohya's files; names keep their dots.

        Raises:
            IncompatibleError: kohya's files have no name for a layer.
        """
        return dict(layers)

    def original_names(self, layer: str, config: Any) -> list[tuple[str, int | str | None]]:
        """Names of a denoiser layer in the repository that first published the model.

        Args:
            config: The denoiser's config.

        Returns:
            Each name with the part of that layer's outputs that `layer` is. None: all. 0, 1, 2: a third (queries, keys,
            values). "swapped": all, with its two halves exchanged.
        """
        try:
            name = unet_names.original_name(layer)
        except (KeyError, ValueError, IndexError):
            return []
        if ".upsamplers." in layer:  # in a block without attention the convolution has a lower index
            return [(name, None), (name.replace(".2.conv", ".1.conv"), None)]
        return [(name, None)]


class _SD1FileNames(FileNames):
    architecture = "stable-diffusion-v1"
    version = "sd_v1"


class _SD2FileNames(FileNames):
    architecture = "stable-diffusion-v2-768-v"
    version = "sd_v2"


class _SDXLFileNames(FileNames):
    architecture = "stable-diffusion-xl-v1-base"
    version = "sdxl_base_v1-0"
    hub_tag = "stable-diffusion-xl"
    embedding_keys = ("clip_l", "clip_g")

    def to_kohya(self, layers: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
        """Use the original names, because kohya's scripts read no others for SDXL."""
        return {unet_names.original_name(name): pair for name, pair in layers.items()}


class _SD3FileNames(FileNames):
    architecture = "stable-diffusion-3-medium"
    version = "medium"
    kohya_network_module = "networks.lora_sd3"
    hub_tag = "sd3"
    embedding_keys = ("clip_l", "clip_g")

    def to_kohya(self, layers: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
        """Use the original names, with queries, keys and values fused into one layer."""
        return fused_layers.fuse_qkv(layers, mmdit_names.kohya_name)

    def original_names(self, layer: str, config: Any) -> list[tuple[str, int | str | None]]:
        """As of every family; queries, keys and values are thirds of one layer."""
        return mmdit_names.original_names(layer, int(config.num_layers))


class _SD35FileNames(_SD3FileNames):
    architecture = "stable-diffusion-3-5-medium"
    version = "5-medium"


class _Flux2KleinFileNames(FileNames):
    architecture = "Flux.2-klein-4b"
    version = "flux_2_klein_4b"
    kohya_network_module = "networks.lora_flux_2"
    hub_tag = "flux2-klein"
    tools_read_embeddings = False

    def to_kohya(self, layers: Mapping[str, LoraPair]) -> dict[str, LoraPair]:
        """Use the original names, with queries, keys and values of double-stream blocks fused into one layer."""
        return fused_layers.fuse_qkv(layers, flux2_names.original_name)

    def original_names(self, layer: str, config: Any) -> list[tuple[str, int | str | None]]:
        """As of every family; queries, keys and values are thirds of one layer."""
        name = flux2_names.original_name(layer)
        return [name] if name else []


class _ZImageFileNames(FileNames):
    architecture = "Z-Image"
    version = "z_image"
    kohya_network_module = "networks.lora_zimage"
    hub_tag = "z-image"
    tools_read_embeddings = False

    def original_names(self, layer: str, config: Any) -> list[tuple[str, int | str | None]]:
        """In the original repository queries, keys and values are thirds of one layer; other layers keep their names."""
        stem, dot, end = layer.rpartition("attention.")
        names: dict[str, OriginalName] = {
            "to_q": ("qkv", 0),
            "to_k": ("qkv", 1),
            "to_v": ("qkv", 2),
            "to_out.0": ("out", None),
        }
        if not dot or end not in names:
            return []
        name, part = names[end]
        return [(f"{stem}{dot}{name}", part)]


FILE_NAMES: dict[str, FileNames] = {
    "sd1": _SD1FileNames(),
    "sd2": _SD2FileNames(),
    "sdxl": _SDXLFileNames(),
    "sd3": _SD3FileNames(),
    "sd35": _SD35FileNames(),
    "flux2-klein": _Flux2KleinFileNames(),
    "z-image": _ZImageFileNames(),
}
"""`Family.name` to its file names."""


def of_family(family: Family) -> FileNames:
    """The file names of a family."""
    return FILE_NAMES[family.name]
