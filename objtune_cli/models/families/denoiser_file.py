"""A denoiser alone in one file, as ComfyUI keeps it; tokenizer, text encoder, VAE and scheduler come from a diffusers folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objtune_cli.errors import DamagedError, IncompatibleError
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.families.component_loading import first_line, refuse_incomplete
from objtune_cli.models.families.family import Family
from objtune_cli.models.families.flow import FlowFamily

PREFIX = re.compile(r"^(?:model\.)?diffusion_model\.")
"""What ComfyUI puts before the keys of some files."""
OTHER_NAMES = {"query_norm.weight": "query_norm.scale", "key_norm.weight": "key_norm.scale"}
"""Ends of keys in some files to those of the original repository."""


@dataclass(frozen=True, slots=True)
class DenoiserFile:
    """A denoiser's file.

    Attributes:
        shapes: Shape of each tensor, by its key without prefixes.
    """

    family: FlowFamily
    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    def check_parts(self, folder: Path) -> None:
        """Refuse a folder whose denoiser has another size.

        Raises:
            IncompatibleError: Names both sizes.
        """
        own = self.family.denoiser_size(self.shapes)
        wanted = self.family.configured_size(folders.read_json(folder, f"{self.family.denoiser}/config.json"))
        if own != wanted:
            raise IncompatibleError(
                f"{self.path} does not belong to the model in {folder}: its denoiser is {own}, that one's {wanted}",
                "give the folder or hub id of its own model: `--set base_parts=…`",
            )


def read(path: Path, families: tuple[Family, ...]) -> DenoiserFile | None:
    """Read the header of a denoiser's file; None for other files.

    Raises:
        DamagedError: The file is not a complete safetensors file. IncompatibleError: Its weights are quantised.
    """
    header = folders.read_header(path)
    shapes = {PREFIX.sub("", key): tuple(each["shape"]) for key, each in header.items() if key != "__metadata__"}
    flows = (family for family in families if isinstance(family, FlowFamily))
    family = next((family for family in flows if family.is_denoiser_file(shapes)), None)
    if family is None:
        return None
    for key, each in header.items():
        if key.endswith(folders.SCALED) or (key != "__metadata__" and each["dtype"] in folders.INTEGERS):
            raise IncompatibleError(
                f"{path} has quantised weights with separate scales ({key})",
                "use it in bf16, fp16, or fp8 without scales; `--set train.quantize_base=4bit` saves memory",
            )
    return DenoiserFile(family, path, shapes)


def load(file: DenoiserFile, folder: Path) -> Any:
    """Load the denoiser with the converter of diffusers and the config in a folder; fp8 becomes bf16, which holds all its values.

    Raises:
        DamagedError: The file lacks a weight, or a weight has another shape.
    """
    import diffusers
    import torch
    from safetensors.torch import load_file

    fp8 = (torch.float8_e4m3fn, torch.float8_e5m2)
    checkpoint = {}
    for key, value in load_file(file.path).items():
        name = PREFIX.sub("", key)
        end = next((end for end in OTHER_NAMES if name.endswith(end)), "")
        name = name.removesuffix(end) + OTHER_NAMES.get(end, "")
        checkpoint[name] = value.to(torch.bfloat16) if value.dtype in fp8 else value
    kind: Any = getattr(diffusers, file.family.denoiser_class)
    try:
        network = kind.from_single_file(
            checkpoint, config=str(folder), subfolder=file.family.denoiser, local_files_only=True
        )
    except NotImplementedError:  # a weight that the file lacks is still on the meta device
        raise DamagedError(f"{file.path} is damaged: its denoiser lacks weights", folders.AGAIN) from None
    except (ValueError, RuntimeError, KeyError) as error:
        raise DamagedError(
            f"{file.path} is damaged: its denoiser cannot be opened: {first_line(error)}", folders.AGAIN
        ) from None
    refuse_incomplete(
        str(file.path), file.family.denoiser, [key for key, value in network.named_parameters() if value.is_meta]
    )
    return network
