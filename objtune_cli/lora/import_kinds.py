"""Classifies files of other tools by their tensor names: LoRA parts, other adapter types, whole models, and the model family."""

import re
from collections.abc import Collection, Iterable, Mapping

from objtune_cli.models.families import FAMILIES

PARTS = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (r"(.+)\.lora_(?:A|down)(?:\.(?!weight$|bias$)[\w-]+)?(?:\.weight)?", "A"),
        (r"(.+)\.lora_(?:B|up)(?:\.(?!weight$|bias$)[\w-]+)?(?:\.weight)?", "B"),
        (r"(.+)\.(?:lora|lora_linear_layer)\.down\.weight", "A"),
        (r"(.+)\.(?:lora|lora_linear_layer)\.up\.weight", "B"),
        (r"(.+)_lora\.down\.weight", "A"),
        (r"(.+)_lora\.up\.weight", "B"),
        (r"(.+)\.lora_mid\.weight", "mid"),
        (r"(.+)\.lora_B(?:\.(?!bias$)[\w-]+)?\.bias", "lora_bias"),
        (r"(.+)\.diff", "diff"),
        (r"(.+)\.diff_b", "diff_bias"),
        (r"(.+)\.alpha", "alpha"),
    )
)
"""Suffixes of keys in files of kohya's scripts, peft, ComfyUI and older diffusers, and the part of a layer that each holds."""
WRAPPERS = re.compile(r"^(?:base_model\.model\.|module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.|(?<=\.)processor\.")
"""Components that peft, compiled models, distributed training and old attention processors insert into layer names."""
OTHER_KINDS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"\.hada_", "is a LoHa"),
        (r"\.lokr_", "is a LoKr"),
        (r"\.(?:dora_scale|lora_magnitude_vector)", "is a DoRA"),
        (r"\.boft_", "is a BOFT"),
        (r"\.oft_", "is an OFT"),
        (r"\.ia3_l|^(?:lora|lycoris)_.+\.on_input$", "is an IA3"),
        (r"^(?:lora|lycoris)_.+\.[ab][12]\.weight$", "is a GLoRA"),
        (r"\.?vera_lambda_", "is a VeRA"),
        (r"\.lora_E(?:\.|$)", "is an AdaLoRA"),
        (r"\.lora_embedding_[AB]", "trains the table of tokens"),
        (r"^lora_controlnet$", "is a Control-LoRA"),
        (
            r"^(?:unet|text_encoder):\d+:(?:up|down|rank|alpha)$",
            "numbers its layers in place of naming them (the first LoRA scripts)",
        ),
        (r"\.[wb]_norm$", "has trained norms"),
        (r"\.set_weight$", "replaces whole weights (set_weight)"),
        (r"\.reshape_weight$", "changes the sizes of layers (reshape_weight)"),
        (r"\.modules_to_save\.", "has whole trained layers (modules_to_save)"),
        (r"trainable_tokens", "has trained rows of the table of tokens"),
    )
)
"""Keys of adapter types that an artifact cannot hold."""
WHOLE = tuple(
    (re.compile(pattern), kind, hint)
    for pattern, kind, hint in (
        (
            r"^(?:model\.diffusion_model|cond_stage_model|conditioner\.embedders)\.",
            "is a whole model",
            "give it as the base: `--base {path}`",
        ),
        (r"^(?:ip_adapter|image_proj)\.", "is an IP-Adapter", ""),
        (r"^control_model\.|controlnet_|input_hint_block", "is a ControlNet", ""),
        (r"^(?:adapter\.)?body\.\d+\.", "is a T2I-Adapter", ""),
        (r"motion_modules\.", "is a motion module of AnimateDiff", ""),
        (r"^(?:first_stage_model\.|(?:encoder|decoder)\.conv_in\.|post_quant_conv\.)", "is a VAE", ""),
        (
            r"^(?:(?:down|up)_blocks\.|mid_block\.|(?:diffusion_model\.)?(?:input_blocks|output_blocks|middle_block|joint_blocks|double_blocks|single_blocks)\.|"
            r"(?:single_)?transformer_blocks\.)",
            "is a denoiser without its text encoders and VAE",
            "give the whole model, or its diffusers folder, as `--base`",
        ),
        (r"^(?:text_model|encoder|transformer)\.(?:encoder\.)?(?:layers|block|resblocks)\.", "is a text encoder", ""),
        (r"^(?:vision_model|visual)\.", "is an image encoder", ""),
        (r"^(?:320|640|768|1024|1280|2048)\.\d+\.", "is a hypernetwork", ""),
        (r"^(?:model\.\d+\.|conv_first\.|body\.\d+\.rdb)", "is an upscaler", ""),
    )
)
"""Prefixes of keys in files that are neither a LoRA nor an embedding."""
BESIDE_LAYERS = 4
"""The first entries of WHOLE decide even if the file also has LoRA layers."""
GIVE = "give a LoRA or an embedding"
FOREIGN = tuple(
    (re.compile(pattern), title)
    for pattern, title in (
        (r"lora_prior_|prior_unet", "Stable Cascade"),
        (r"double_blocks|single_blocks|single_transformer_blocks", "Flux, Chroma or HunyuanVideo"),
        (r"img_mlp|txt_mlp", "Qwen-Image"),
        (r"blocks[._]\d+[._]cross_attn", "Wan"),
    )
)
"""Keys of model families that are not supported."""
FLUX2_ROWS = (27648, 36864)
"""Outputs of a single-stream block's first layer in FLUX.2 klein, 4B and 9B; the names are those of other models too."""
OF_Z_IMAGE = re.compile(
    r"(?:layers|(?:noise|context)_refiner)[._]\d+[._](?:attention[._](?:to_|qkv|out)|feed_forward[._]w)"
)
"""Keys of Z-Image."""
WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Widths of the prompt embeddings in cross-attention, and the families."""
VERSIONS = (("z_image", "z-image"), ("z-image", "z-image"), ("flux_2_klein", "flux2-klein"), ("flux.2-klein", "flux2-klein"), ("sdxl", "sdxl"), ("stable-diffusion-xl", "sdxl"), ("stable-diffusion-3-5", "sd35"), ("sd3.5", "sd35"), ("stable-diffusion-3", "sd3"),
            ("sd3", "sd3"), ("sd_v2", "sd2"), ("stable-diffusion-v2", "sd2"), ("sd_v1", "sd1"), ("stable-diffusion-v1", "sd1"))  # fmt: skip
"""Prefixes of `ss_base_model_version` and `modelspec.architecture`, and the families."""


def split_key(key: str) -> tuple[str, str] | None:
    """Return the layer of a key, as the file names it, and the part that the key holds; None if it belongs to no layer."""
    for form, part in PARTS:
        match = form.fullmatch(key)
        if match:
            return WRAPPERS.sub("", match[1]), part
    return None


def other_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """Return the adapter type of a file that is no LoRA, and the key that shows it; None otherwise."""
    named = list(keys)
    return next(((kind, key) for mark, kind in OTHER_KINDS for key in named if mark.search(key)), None)


def whole_kind(keys: Collection[str]) -> tuple[str, str] | None:
    """Return the kind of a file that is no adapter, and a hint; None if it is not known."""
    rest = [key for key in keys if split_key(key) is None and other_kind([key]) is None]
    of_adapters = [key for key in keys if key.startswith("ip_adapter.")]  # which may hold LoRA layers of their own
    kinds = (
        WHOLE[:BESIDE_LAYERS] if len(rest) < len(list(keys)) else WHOLE
    )  # a LoRA may bring whole weights of a denoiser along
    return next(
        ((kind, hint or GIVE) for mark, kind, hint in kinds for key in (*of_adapters, *rest) if mark.search(key)), None
    )


def is_lora(keys: Iterable[str]) -> bool:
    """Whether a file has adapter layers of any type."""
    named = list(keys)
    return any(split_key(key) for key in named) or other_kind(named) is not None


def family_hint(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    """Return a hint: the likely model family of a file, and the `--base` option for it."""
    by_name = {f.name: f for f in FAMILIES}
    name = _family(shapes, metadata)
    if name in by_name:
        return f"it looks like one of {by_name[name].title}: `--base {next(iter(by_name[name].hub))}`"
    if name:
        return f"it looks like one of {name}, which is not among the families of docs/reference/base-models.md"
    return "`--base` names the base that it was made on"


def _family(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    """Return the name of a supported family, the title of another one, or ""."""
    if any(_is_of_flux2(key, shape) for key, shape in shapes.items()):
        return "flux2-klein"
    if any(OF_Z_IMAGE.search(key) for key in shapes):
        return "z-image"
    foreign = next((title for mark, title in FOREIGN for key in shapes if mark.search(key)), "")
    if foreign:
        return foreign
    for architecture in (metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", "")):
        for start, name in VERSIONS:
            if architecture.lower().startswith(start):
                return name
    widths = {
        s[1]
        for k, s in shapes.items()
        if re.search(r"attn2[._](?:processor\.)?to_k", k) and len(s) >= 2 and s[0] < s[1]
    }
    family = next((WIDTHS[w] for w in sorted(widths) if w in WIDTHS), "")
    if not family and any("joint_blocks" in key or "add_k_proj" in key for key in shapes):
        return "sd3"
    if not family and any(re.match(r"lora_te2_|text_encoder_2\.|(?:text_encoders\.)?clip_g\.", key) for key in shapes):
        return "sdxl"
    return family


def _is_of_flux2(key: str, shape: tuple[int, ...]) -> bool:
    is_first = re.search(r"single_blocks[._]\d+[._]linear1\.lora_(?:B|up)", key)
    return "to_qkv_mlp_proj" in key or bool(is_first and shape[:1] and shape[0] in FLUX2_ROWS)
