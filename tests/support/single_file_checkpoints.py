"""A tiny base as one file in the first repositories' layout, as Civitai's are; the names by hand, not by diffusers' converters."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from objtune_cli.lora.mmdit_names import KOHYA
from objtune_cli.lora.unet_names import original_name

UNET = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
BLOCK = {"norm1": "in_layers.0", "norm2": "out_layers.0"}
OPEN = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


JOINT = {
    "pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2", "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "context_embedder": "context_embedder", "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}  # fmt: skip
NORMS = {
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k", "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k", "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
}  # fmt: skip
"""Layers of SD 3's transformer that kohya's files have no name for, outside its blocks and in them."""


def unet_name(layer: str, attended: set[str]) -> str:
    """A layer of the denoiser; `attended`: levels of its second half with attention."""
    parts = layer.split(".")
    if layer in UNET:
        return UNET[layer]
    if "downsamplers" in parts:
        return f"input_blocks.{3 * (int(parts[1]) + 1)}.0.op"
    if "upsamplers" in parts:
        return f"output_blocks.{3 * int(parts[1]) + 2}.{2 if parts[1] in attended else 1}.conv"
    if parts[-1] in BLOCK and "resnets" in parts:
        return original_name(".".join([*parts[:-1], "conv1"])).rsplit(".in_layers", 1)[0] + "." + BLOCK[parts[-1]]
    return original_name(layer)


def vae_name(layer: str, levels: int) -> str:
    """A layer of the autoencoder."""
    parts = layer.split(".")
    if len(parts) > 2 and parts[1] in ("down_blocks", "up_blocks"):
        way = "down" if parts[1] == "down_blocks" else "up"
        level = parts[2] if way == "down" else str(levels - 1 - int(parts[2]))
        rest = parts[3:]
        inner = ["block", *rest[1:]] if rest[0] == "resnets" else [f"{way}sample", *rest[2:]]
        return ".".join([parts[0], way, level, *inner]).replace("conv_shortcut", "nin_shortcut")
    if len(parts) > 2 and parts[1] == "mid_block":
        if parts[2] == "resnets":
            return ".".join([parts[0], "mid", f"block_{int(parts[3]) + 1}", *parts[4:]])
        names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        return f"{parts[0]}.mid.attn_1.{names['.'.join(parts[4:])]}"
    return layer.replace("conv_norm_out", "norm_out")


def open_clip(weights: dict[str, Tensor], prefix: str, projection: Tensor | None, width: int) -> dict[str, Tensor]:
    """A text tower as OpenCLIP keeps it: queries, keys and values in one, the projection transposed."""
    found = {f"{prefix}text_projection": projection.T if projection is not None else torch.eye(width)}
    for key, value in weights.items():
        if ".layers." not in key:
            ends = {
                "token_embedding.weight": "token_embedding.weight",
                "position_embedding.weight": "positional_embedding",
            }
            name = next(
                (new for old, new in ends.items() if key.endswith(old)), key.replace("final_layer_norm", "ln_final")
            )
            found[prefix + name] = value
            continue
        number, rest = key.split(".layers.")[1].split(".", 1)
        layer, kind = rest.rsplit(".", 1)
        stem = f"{prefix}transformer.resblocks.{number}"
        if layer in OPEN:
            found[f"{stem}.{OPEN[layer]}.{kind}"] = value
        elif layer == "self_attn.q_proj":
            parts = [weights[key.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[f"{stem}.attn.in_proj_{kind}"] = torch.cat(parts)
    return found


def joint(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """SD 3's transformer: queries, keys and values in one; where only two things are said to a norm, its shift stands before its scale."""
    found: dict[str, Tensor] = {}
    last = max(int(key.split(".")[1]) for key in weights if key.startswith("transformer_blocks."))
    for key, value in weights.items():
        layer, kind = key.rsplit(".", 1)
        if key == "pos_embed.pos_embed":
            found["pos_embed"] = value
            continue
        turned = (
            torch.cat(value.chunk(2)[::-1])
            if layer in ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
            else value
        )
        if layer in JOINT:
            found[f"{JOINT[layer]}.{kind}"] = turned
            continue
        _, block, inner = layer.split(".", 2)
        name, third = KOHYA[inner] if inner in KOHYA else (NORMS[inner], None)
        if third is None:
            found[f"joint_blocks.{block}.{name}.{kind}"] = turned
        elif third == 0:
            others = ("add_k_proj", "add_v_proj") if "add_q" in key else ("to_k", "to_v")
            old = "add_q_proj" if "add_q" in key else "to_q"
            found[f"joint_blocks.{block}.{name}.{kind}"] = torch.cat(
                [value, *(weights[key.replace(old, other)] for other in others)]
            )
    return found


def joint_file(folder: Path, target: Path, *without: str) -> Path:
    """Write a base of SD 3 or 3.5 in `folder` as one file, as the "incl_clips" files are, with T5 where it has one; `without`: starts of keys left out."""
    towers = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}
    read = {
        part: load_file(file)
        for part in ("transformer", "vae", *towers)
        for file in (folder / part).glob("*.safetensors")
    }
    levels = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    found = {f"model.diffusion_model.{key}": value for key, value in joint(read["transformer"]).items()}
    for key, value in read["vae"].items():
        layer, kind = key.rsplit(".", 1)
        found[f"first_stage_model.{vae_name(layer, levels)}.{kind}"] = value
    for part, name in towers.items():
        found |= {f"text_encoders.{name}.transformer.{key}": value for key, value in read.get(part, {}).items()}
        if name != "t5xxl":
            found[f"text_encoders.{name}.logit_scale"] = torch.tensor(4.6)
    save_file({k: v.clone().contiguous() for k, v in found.items() if not k.startswith(without)}, target)
    return target


def one_file(folder: Path, name: str, target: Path) -> Path:
    """Write the base in `folder`, of family `name`, as one file; returns `target`."""
    if name in ("sd3", "sd35"):
        return joint_file(folder, target)
    read = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder")}
    attended = {k.split(".")[1] for k in read["unet"] if k.startswith("up_blocks.") and ".attentions." in k}
    levels = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    found: dict[str, Tensor] = {}
    for key, value in read["unet"].items():
        layer, kind = key.rsplit(".", 1)
        found[f"model.diffusion_model.{unet_name(layer, attended)}.{kind}"] = value
    for key, value in read["vae"].items():
        layer, kind = key.rsplit(".", 1)
        named = vae_name(layer, levels)
        conv = "attn_1" in named and kind == "weight" and value.ndim == 2
        found[f"first_stage_model.{named}.{kind}"] = value[..., None, None] if conv else value
    bare = {k.removeprefix("text_model."): v for k, v in read["text_encoder"].items()}
    if name == "sd2":
        width = bare["final_layer_norm.weight"].shape[0]
        found |= open_clip(bare, "cond_stage_model.model.", None, width)
    else:
        start = (
            "cond_stage_model.transformer.text_model."
            if name == "sd1"
            else "conditioner.embedders.0.transformer.text_model."
        )
        found |= {start + k: v for k, v in bare.items()}
    if name == "sdxl":
        second = load_file(next((folder / "text_encoder_2").glob("*.safetensors")))
        projection = second.pop("text_projection.weight")
        found |= open_clip(
            {k.removeprefix("text_model."): v for k, v in second.items()},
            "conditioner.embedders.1.model.",
            projection,
            0,
        )
    save_file({k: v.contiguous() for k, v in found.items()}, target)
    return target


def layout(folder: Path, target: Path) -> None:
    """The base's configs alone, as the package keeps the real ones'."""
    for path in folder.rglob("*.json"):
        part = path.relative_to(folder)
        if not part.parts[0].startswith(("tokenizer", "clip")):
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / part)
