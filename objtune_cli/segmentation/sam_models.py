"""Models of segment-anything's classes: official checkpoints, and the small model in this package.

Checkpoints are read as plain tensors, and no code in them is run.
"""

import json
import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from objtune_cli.errors import InputError, ResourceError
from objtune_cli.runtime import torchvision_compat
from objtune_cli.runtime.load_lock import LOAD_LOCK
from objtune_cli.store import regular_files

torchvision_compat.complete()  # segment-anything imports torchvision
from segment_anything import sam_model_registry  # noqa: E402
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer  # noqa: E402

STORED_NAMES = {"global_attn_indexes": "everywhere"}
"""Fields of `Dims` whose names in config.json differ."""


@dataclass(frozen=True, slots=True)
class Dims:
    """Sizes of a segment-anything model.

    Attributes:
        side, patch: Sides of input images and patches, px. window: Side of attention windows, patches.
        width, depth, heads: Sizes of the image encoder. everywhere: Layers with global attention.
        prompt: Width of prompts and decoder. mlp: Hidden width of the decoder's layers.
    """

    side: int = 128
    patch: int = 8
    window: int = 8
    width: int = 128
    depth: int = 6
    heads: int = 4
    global_attn_indexes: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    prompt: int = 128
    mlp: int = 256

    def to_json(self) -> dict[str, Any]:
        """The sizes as the embedded model's config.json stores them."""
        return {STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Dims":
        """Sizes from the embedded model's config.json."""
        names = {on_disk: name for name, on_disk in STORED_NAMES.items()}
        sizes: dict[str, Any] = {names.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**sizes)


def build_sam(dims: Dims) -> Any:
    """Build an untrained `Sam` of these sizes without relative positions."""
    cells = dims.side // dims.patch
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=dims.side, patch_size=dims.patch, embed_dim=dims.width, depth=dims.depth, num_heads=dims.heads, mlp_ratio=4,
            out_chans=dims.prompt, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=False, window_size=dims.window, global_attn_indexes=dims.global_attn_indexes,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=dims.prompt, image_embedding_size=(cells, cells), input_image_size=(dims.side, dims.side), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=dims.prompt, mlp_dim=dims.mlp, num_heads=dims.heads),
            transformer_dim=dims.prompt, iou_head_depth=3, iou_head_hidden_dim=dims.prompt,
        ),
    )  # fmt: skip


OFFICIAL_MODELS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Width of the image encoder to the name of the official model."""


def load_embedded(folder: Path) -> tuple[Any, str]:
    """Load the embedded model; also return its name.

    Raises:
        ResourceError: Its files are missing or damaged.
    """
    from safetensors.torch import load_file

    try:
        record = json.loads((folder / "config.json").read_bytes())
        state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        with LOAD_LOCK:
            model = build_sam(Dims.from_json(record["dims"]))
        model.load_state_dict(state)
    except Exception as error:  # damaged files raise many kinds of errors
        raise ResourceError(
            f"the segmenter in {folder} cannot be opened: {type(error).__name__}", "install objtune again"
        ) from None
    return model.eval(), record["name"]


def load_official(checkpoint: Path) -> tuple[Any, str]:
    """Load an official checkpoint (.pth, or a safetensors copy) without running code in it; also return the model's name.

    Raises:
        InputError: The file is missing, differs from the digest in its name, has more than plain tensors, or is another model.
    """
    _check_digest(checkpoint)
    state = _read_checkpoint(checkpoint)
    first = state.get("image_encoder.patch_embed.proj.weight") if isinstance(state, dict) else None
    kind = OFFICIAL_MODELS.get(len(first) if isinstance(first, Tensor) and first.ndim else 0)
    if kind is None:
        raise InputError(f"{checkpoint} is not a segment-anything checkpoint", "give sam_vit_b, sam_vit_l or sam_vit_h")
    with LOAD_LOCK:
        model = sam_model_registry[kind](checkpoint=None)  # with a path, the builder would unpickle the file
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise InputError(f"{checkpoint} does not fit segment-anything's {kind}", "download it again") from None
    return model.eval(), f"sam-{kind}"


def _check_digest(path: Path) -> None:
    """Check the SHA-256 prefix in the names of official files: sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth."""
    claimed = re.fullmatch(r"sam_vit_[blh]_([0-9a-f]{6})\.pth", path.name)
    if claimed is None or not path.is_file():
        return
    sha256 = regular_files.file_sha256(path)
    if not sha256.startswith(claimed[1]):
        raise InputError(
            f"{path} does not match its name: its SHA-256 begins with {sha256[:6]}, not {claimed[1]}",
            "download it again",
        )


def _read_checkpoint(path: Path) -> Any:
    """Read the tensors of a checkpoint.

    Raises:
        InputError: It is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise InputError(
            f"there is no file {path}", "give a segment-anything checkpoint, or none for the embedded model"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and hostile files end here; none of their code has run
        raise InputError(
            f"{path} is not a readable checkpoint: {type(error).__name__}",
            "official checkpoints and safetensors copies are read",
        ) from None
