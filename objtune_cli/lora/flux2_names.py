"""Names of the FLUX.2 transformer's layers in the original repository, ComfyUI's and kohya's files, where queries, keys and values of double-stream blocks are one layer."""

from objtune_cli.lora.fused_layers import OriginalName

DOUBLE: dict[str, OriginalName] = {
    "attn.to_q": ("img_attn.qkv", 0), "attn.to_k": ("img_attn.qkv", 1), "attn.to_v": ("img_attn.qkv", 2), "attn.to_out.0": ("img_attn.proj", None),
    "attn.add_q_proj": ("txt_attn.qkv", 0), "attn.add_k_proj": ("txt_attn.qkv", 1), "attn.add_v_proj": ("txt_attn.qkv", 2),
    "attn.to_add_out": ("txt_attn.proj", None), "ff.linear_in": ("img_mlp.0", None), "ff.linear_out": ("img_mlp.2", None),
    "ff_context.linear_in": ("txt_mlp.0", None), "ff_context.linear_out": ("txt_mlp.2", None),
}  # fmt: skip
"""Layers of a double-stream block."""
SINGLE: dict[str, OriginalName] = {"attn.to_qkv_mlp_proj": ("linear1", None), "attn.to_out": ("linear2", None)}
"""Layers of a single-stream block."""
OUTSIDE: dict[str, OriginalName] = {
    "x_embedder": ("img_in", None), "context_embedder": ("txt_in", None), "proj_out": ("final_layer.linear", None),
    "time_guidance_embed.timestep_embedder.linear_1": ("time_in.in_layer", None),
    "time_guidance_embed.timestep_embedder.linear_2": ("time_in.out_layer", None),
    "time_guidance_embed.guidance_embedder.linear_1": ("guidance_in.in_layer", None),
    "time_guidance_embed.guidance_embedder.linear_2": ("guidance_in.out_layer", None),
    "single_stream_modulation.linear": ("single_stream_modulation.lin", None),
    "double_stream_modulation_img.linear": ("double_stream_modulation_img.lin", None),
    "double_stream_modulation_txt.linear": ("double_stream_modulation_txt.lin", None),
    "norm_out.linear": ("final_layer.adaLN_modulation.1", "swapped"),
}  # fmt: skip
"""Layers outside the blocks."""
BLOCKS = {"transformer_blocks": ("double_blocks", DOUBLE), "single_transformer_blocks": ("single_blocks", SINGLE)}


def original_name(layer: str) -> OriginalName | None:
    """The original name of a layer, and its part of that layer's outputs, see `FileNames.original_names`; None if it has none."""
    if layer in OUTSIDE:
        return OUTSIDE[layer]
    kind, _, rest = layer.partition(".")
    block, _, inner = rest.partition(".")
    blocks, names = BLOCKS.get(kind, ("", {}))
    if inner not in names:
        return None
    name, part = names[inner]
    return f"{blocks}.{block}.{name}", part
