"""A LoRA or embedding file of another tool, opened."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from objtune_cli.lora import import_kinds
from objtune_cli.lora.import_scale import Strength

LARGEST_NUMBER = 65504.0
"""The largest number of fp16, in which other tools compute; a larger one becomes infinite there."""
FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
BUNDLED_VECTORS = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\..+|clip_l|clip_g|clip_h|t5|t5xxl)")
"""Keys of a token's vectors inside a LoRA file."""
GET_AGAIN = "get the file again"


@dataclass(frozen=True, slots=True)
class Source:
    """An opened file.

    Attributes:
        what: Its name in messages. metadata: of its header.
        strengths: Scale settings by network ("" for the whole file), see `import_scale.Strength`.
        network: The network that it is for, where its place in a folder shows it.
    """

    what: str
    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    strengths: Mapping[str, Strength] = field(default_factory=dict)
    network: str = ""

    def hint(self) -> str:
        """The likely model family of the file, as a hint."""
        return import_kinds.family_hint({key: tuple(value.shape) for key, value in self.weights.items()}, self.metadata)
