"""Names of the SD 3 transformer's layers in the original repository and in kohya's files, where queries, keys and values are one layer."""

from objtune_cli.lora.fused_layers import OriginalName

KOHYA: dict[str, tuple[str, int | None]] = {
    "attn.to_q": ("x_block.attn.qkv", 0), "attn.to_k": ("x_block.attn.qkv", 1), "attn.to_v": ("x_block.attn.qkv", 2),
    "attn.to_out.0": ("x_block.attn.proj", None), "attn.add_q_proj": ("context_block.attn.qkv", 0),
    "attn.add_k_proj": ("context_block.attn.qkv", 1), "attn.add_v_proj": ("context_block.attn.qkv", 2),
    "attn.to_add_out": ("context_block.attn.proj", None), "attn2.to_q": ("x_block.attn2.qkv", 0), "attn2.to_k": ("x_block.attn2.qkv", 1),
    "attn2.to_v": ("x_block.attn2.qkv", 2), "attn2.to_out.0": ("x_block.attn2.proj", None), "ff.net.0.proj": ("x_block.mlp.fc1", None),
    "ff.net.2": ("x_block.mlp.fc2", None), "ff_context.net.0.proj": ("context_block.mlp.fc1", None),
    "ff_context.net.2": ("context_block.mlp.fc2", None),
}  # fmt: skip
"""Layers of a block: original name, and the third of its outputs; None: all."""
NORMS = {"norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1"}
"""Modulation layers of a block's norms; kohya does not train them."""
OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2", "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "context_embedder": "context_embedder", "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}  # fmt: skip
"""Layers outside the blocks."""


def kohya_name(layer: str) -> OriginalName | None:
    """The name of a layer that kohya's scripts train, and its third of the outputs; None for other layers."""
    block, _, inner = layer.removeprefix("transformer_blocks.").partition(".")
    if inner not in KOHYA:
        return None
    end, third = KOHYA[inner]
    return f"joint_blocks.{block}.{end}", third


def original_names(layer: str, blocks: int) -> list[tuple[str, int | str | None]]:
    """The original names of a layer, see `FileNames.original_names`; `blocks` is the number of transformer blocks."""
    if layer in OUTSIDE:
        return [(OUTSIDE[layer], "swapped" if layer == "norm_out.linear" else None)]
    kind, _, rest = layer.partition(".")
    block, _, inner = rest.partition(".")
    if kind != "transformer_blocks" or (inner not in KOHYA and inner not in NORMS):
        return []
    name, third = KOHYA[inner] if inner in KOHYA else (NORMS[inner], None)
    swapped = inner == "norm1_context.linear" and block == str(
        blocks - 1
    )  # the last context norm has shift and scale only
    return [(f"joint_blocks.{block}.{name}", "swapped" if swapped else third)]
