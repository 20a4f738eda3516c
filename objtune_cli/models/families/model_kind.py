"""Checks by the configs that a model is text-to-image; other kinds have the same pipeline classes but more inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from objtune_cli.errors import DamagedError, IncompatibleError

if TYPE_CHECKING:
    from objtune_cli.models.families.family import Family

KINDS = {7: "an upscaler", 5: "a depth-to-image model"}
"""Number of input channels of the denoiser, for latents with four channels, to the kind of model."""
PictureInput = Literal["", "inpainting", "editing"]
"""What a denoiser does with the picture that it takes beside the latents; "" if it takes none."""
SIDE_MULTIPLE = 8
"""Sides of images are multiples of this many pixels."""
WORDS_ALONE = "use a text-to-image model"


def check_index(family: "Family", folder: Path, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline without a text encoder that its family needs.

    Raises:
        IncompatibleError: Names the kind of model.
    """
    for part in family.encoders:
        if part in index and (not isinstance(index[part], list) or index[part][:1] == [None]):
            kind = (
                "a refiner: it has no first text encoder"
                if part == "text_encoder" and len(family.encoders) > 1
                else f"a model without {part}"
            )
            raise IncompatibleError(f"the base in {folder} is {kind}", "use the base model, with all text encoders")


def picture_input(takes: int, latents: int) -> PictureInput:
    """What a denoiser takes beside the latents, by its numbers of input and latent channels.

    Inpainting models take a mask and the latents of the masked picture. Models that edit by an instruction
    (InstructPix2Pix, arXiv:2211.09800) take the latents of the picture.
    """
    kinds: dict[int, PictureInput] = {2 * latents + 1: "inpainting", 2 * latents: "editing"}
    return kinds.get(takes, "")


def check_channels(name: str, takes: int, latents: int) -> None:
    """Refuse a denoiser with inputs besides the latents, unless they are a picture's.

    Args:
        name: The base in messages. takes: Number of input channels. latents: Number of latent channels.
    """
    if takes != latents and not picture_input(takes, latents):
        kind = KINDS.get(takes, "no text-to-image model") if latents == 4 else "no text-to-image model"
        raise IncompatibleError(
            f"{name} is {kind}: its denoiser takes {takes} channels, and latents have {latents}",
            WORDS_ALONE,
        )


def check_configs(family: "Family", folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse networks with other inputs than those of the family, and networks of different models.

    Raises:
        IncompatibleError: Names the part and the value.
    """
    name, denoiser, vae = f"the base in {folder}", configs[family.denoiser], configs["vae"]
    classes = {family.denoiser: family.denoiser_class, "vae": family.vae_class}
    for part, config in configs.items():
        kind, wanted = config.get("_class_name"), classes.get(part)
        if wanted and kind and kind != wanted:
            raise IncompatibleError(
                f"{name} has {_article(str(kind))} {kind} as its {part}", f"only {wanted} is supported"
            )
        if config.get("quantization_config"):
            raise IncompatibleError(
                f"{name} is quantised: {part}/config.json has a quantization_config", "use it in fp32, bf16 or fp16"
            )
        wanted = family.text_encoder_type
        if part in family.encoders and not str(config.get("model_type", wanted)).startswith(wanted):
            raise IncompatibleError(
                f"{name} has a text encoder of another kind: {config['model_type']}",
                f"its text encoders must be {'CLIP' if wanted == 'clip' else wanted}'s",
            )
    _check_numbers(family, folder, denoiser, vae)
    _check_vae(family, folder, denoiser, vae)
    latents = family.latent_channels_of_vae(vae)
    check_channels(name, int(denoiser.get("in_channels") or latents), latents)
    if int(denoiser.get("out_channels") or latents) != latents:
        raise IncompatibleError(
            f"{name} has a denoiser that gives {denoiser['out_channels']} channels, and latents have {latents}",
            WORDS_ALONE,
        )
    if vae.get("latents_mean") is not None or vae.get("latents_std") is not None:
        raise IncompatibleError(
            f"{name} normalises its latents by their mean and deviation (latents_mean in vae/config.json)",
            "such bases are not supported yet",
        )
    mismatch = family.explain_mismatch(configs)
    if mismatch:
        raise IncompatibleError(f"{name} has components that do not fit together: {mismatch}", WORDS_ALONE)
    if family.denoiser == "unet":
        _check_unet(family, name, denoiser, configs)


def _check_numbers(family: "Family", folder: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Refuse configs whose sizes and scales of images and latents are invalid.

    Raises:
        IncompatibleError: The training images are not square. DamagedError: A value is not a valid number.
    """
    frame = denoiser.get("sample_size")
    sides = frame if isinstance(frame, list) else [frame]
    if len(set(map(str, sides))) != 1:
        raise IncompatibleError(
            f"the base in {folder} was trained on frames of {' x '.join(map(str, sides))} cells, which are not square",
            "bases with square training images are supported",
        )
    values = [
        (family.denoiser, "sample_size", sides[0], 1),
        (family.denoiser, "in_channels", denoiser.get("in_channels"), 1),
        (family.denoiser, "out_channels", denoiser.get("out_channels"), 1),
        ("vae", "latent_channels", vae.get("latent_channels"), 1),
        ("vae", "scaling_factor", vae.get("scaling_factor"), 1e-6),
        ("vae", "shift_factor", vae.get("shift_factor"), -1e6),
    ]
    for part, key, value, least in values:
        missing = value is None and not (key == "scaling_factor" and key in vae)  # null in that key is not the default
        if not missing and (not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= 1e6):
            raise DamagedError(
                f"the base in {folder} is damaged: {key} in {part}/config.json is {value!r}",
                f"correct it in {folder / part / 'config.json'}",
            )


def _check_vae(family: "Family", folder: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Refuse a VAE with lists of blocks of different lengths, and image sizes that it cannot decode.

    Raises:
        DamagedError: Names the value.
    """
    lists = [vae[key] for key in ("block_out_channels", "down_block_types", "up_block_types") if key in vae]
    sizes = {len(each) if isinstance(each, list) else 0 for each in lists}
    if len(sizes) > 1 or 0 in sizes:
        raise DamagedError(
            f"the base in {folder} is damaged: vae/config.json names different numbers of blocks",
            f"correct block_out_channels, down_block_types or up_block_types in {folder / 'vae/config.json'}",
        )
    cells = family.training_side({"sample_size": SIDE_MULTIPLE, **denoiser}, vae)
    side = cells * family.cell_size({"block_out_channels": (64,) * 4, **vae})
    if side % SIDE_MULTIPLE:
        raise DamagedError(
            f"the base in {folder} is damaged: sample_size {cells} is {side} px, not a multiple of {SIDE_MULTIPLE}",
            f"correct it in the denoiser's config.json in {folder}",
        )


def _check_unet(family: "Family", name: str, unet: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> None:
    if unet.get("time_cond_proj_dim") is not None:
        raise IncompatibleError(
            f"{name} is a distilled model whose denoiser takes the guidance as an input (time_cond_proj_dim)",
            "use the model that it was distilled from",
        )
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if unet.get(key) is not None:
            raise IncompatibleError(
                f"{name} has a denoiser with inputs besides text: {key} is {unet[key]}", WORDS_ALONE
            )
    added, wanted = unet.get("addition_embed_type"), "text_time" if len(family.encoders) > 1 else None
    if added != wanted:
        raise IncompatibleError(
            f"{name} has a denoiser with other inputs than {family.title}: addition_embed_type is {added}",
            WORDS_ALONE,
        )
    widths: list[Any] = [configs[part].get("hidden_size") for part in family.encoders]
    expected_width = unet.get("cross_attention_dim", 1280)
    if (
        isinstance(expected_width, int)
        and all(isinstance(width, int) for width in widths)
        and expected_width != sum(widths)
    ):
        mismatch = f"its denoiser takes text features of width {expected_width}, its text encoders give {sum(widths)}"
        raise IncompatibleError(
            f"{name} is a refiner: {mismatch}"
            if wanted and expected_width == widths[-1]
            else f"{name} has components that do not fit together: {mismatch}",
            WORDS_ALONE,
        )
    if wanted:
        inputs, pooled, each = (
            unet.get("projection_class_embeddings_input_dim"),
            configs[family.encoders[-1]].get("projection_dim", 512),
            unet.get("addition_time_embed_dim"),
        )
        if each and inputs and inputs != pooled + 6 * each:
            raise IncompatibleError(
                f"{name} is a refiner, or takes other size conditions: it takes {inputs} numbers besides text, not {pooled + 6 * each}",
                WORDS_ALONE,
            )


def _article(word: str) -> str:
    return "an" if word[:1] in "AEIOU" else "a"
