"""Names of a U-Net's layers in the repository that first published Stable Diffusion; kohya's and ComfyUI's files use them too."""

RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "time_emb_proj": "emb_layers.1",
}
"""Layers of a residual block by their original names; layers of attention have the same names in both."""
OUTSIDE = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
"""Layers outside the blocks by their original names."""


def original_name(layer: str) -> str:
    """The original name of a layer, below `input_blocks`, `middle_block` or `output_blocks`, in a U-Net with two residual blocks per level.

    The convolution after an upsampling is named as in a level with attention.

    Raises:
        KeyError, ValueError, IndexError: Such a U-Net has no layer of this name.
    """
    if layer in OUTSIDE:
        return OUTSIDE[layer]
    kind, *rest = layer.split(".")
    if kind == "mid_block":
        place = {("attentions", "0"): "1", ("resnets", "0"): "0", ("resnets", "1"): "2"}[rest[0], rest[1]]
        return ".".join(("middle_block", place, *_inside(rest[0], rest[2:])))
    if rest[1] == "downsamplers":
        return f"input_blocks.{3 * int(rest[0]) + 3}.0.op"
    if rest[1] == "upsamplers":
        return f"output_blocks.{3 * int(rest[0]) + 2}.2.conv"
    start = {"down_blocks": ("input_blocks", 1), "up_blocks": ("output_blocks", 0)}[kind]
    slot = {"resnets": "0", "attentions": "1"}[rest[1]]
    return ".".join((start[0], str(start[1] + 3 * int(rest[0]) + int(rest[2])), slot, *_inside(rest[1], rest[3:])))


def _inside(kind: str, rest: list[str]) -> list[str]:
    return [RESIDUAL[rest[0]]] if kind == "resnets" else rest
