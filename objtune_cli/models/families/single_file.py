"""Detect what a single-file checkpoint is (Civitai and the like): one safetensors file in the layout of the original repositories.

The configs of the families are in `layouts/`, so that no network is needed.
"""

import json
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from objtune_cli.errors import IncompatibleError, MissingError
from objtune_cli.models.families import model_kind
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.families.family import Family
from objtune_cli.models.families.sd1 import SD1
from objtune_cli.models.families.sd2 import SD2
from objtune_cli.models.families.sd3 import SD3, SD35
from objtune_cli.models.families.sdxl import SDXL

LAYOUTS = Path(__file__).parent / "layouts"
MARKS = (("conditioner.embedders.1.", SDXL), ("cond_stage_model.model.", SD2), ("cond_stage_model.transformer.", SD1))
"""Prefixes of text encoder keys that identify a family."""
UNET, ENTRANCE = "model.diffusion_model.", "model.diffusion_model.input_blocks.0.0.weight"
JOINT, PATCHES = f"{UNET}joint_blocks.", f"{UNET}x_embedder.proj.weight"
CLIPS = {"text_encoder": "text_encoders.clip_l.transformer.", "text_encoder_2": "text_encoders.clip_g.transformer."}
T5, VAE = "text_encoders.t5xxl.transformer.", "first_stage_model."
MAX_CONFIG = 1 << 20
"""Maximum number of bytes that are read of a config beside a checkpoint."""
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Keys that mark models with EDM noise: Playground 2.5, CosXL."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The contents of a file.

    Attributes:
        prediction: Prediction type of the denoiser. assumed: Whether that is only the default of the family.
        zero_snr: Whether the noise schedule has zero terminal signal-to-noise ratio. has_vae: Whether the file has a VAE.
        picture_input: What its denoiser does with a picture; "" for a text-to-image model.
    """

    family: Family
    prediction: str
    assumed: bool = False
    zero_snr: bool = False
    has_vae: bool = True
    picture_input: model_kind.PictureInput = ""

    @property
    def schedule(self) -> dict[str, Any]:
        """Values that override the scheduler config of the family."""
        marked: dict[str, Any] = (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if self.zero_snr else {}
        )
        return {"prediction_type": self.prediction} | marked


def check_kind(path: Path) -> None:
    """Refuse a file that is not a safetensors file.

    Raises:
        IncompatibleError: Its hint names what to pass instead. MissingError: The file cannot be read.
    """
    try:
        if path.suffix.lower() == ".safetensors" or folders.is_safetensors(path):
            return
    except OSError as error:
        raise MissingError(
            f"{path} cannot be read: {error.strerror or error}", "check the file and who may read it"
        ) from None
    around = next((folder for folder in path.resolve().parents[:2] if (folder / "model_index.json").is_file()), None)
    hint = (
        f"it is a part of a base: `--base {shlex.quote(str(around))}`"
        if around
        else "checkpoints in pickles (.ckpt) are not opened; get it as .safetensors"
    )
    raise IncompatibleError(f"{path} is not a .safetensors file", hint)


def choose_prediction(path: Path, prediction: str) -> tuple[Checkpoint, str]:
    """Describe a checkpoint, with the prediction type of the user, else of the config beside it, else of the file.

    Returns:
        The checkpoint; and the prediction type if it overrides that of the file, else "".

    Raises:
        DamagedError, IncompatibleError: As `describe`.
    """
    try:
        own = describe(path)
    except IncompatibleError:  # perhaps only for the prediction type, which the user passed
        return describe(path, prediction), prediction
    wanted = prediction or (read_config_beside(path) if own.assumed else "")
    if wanted in ("", own.prediction):
        return replace(own, assumed=own.assumed and not wanted), ""
    return describe(path, wanted), wanted


def read_config_beside(path: Path) -> str:
    """The prediction type in `<checkpoint>.yaml`, the config that A1111 and ComfyUI read too; "" without one."""
    try:
        text = path.with_suffix(".yaml").read_bytes()[:MAX_CONFIG].decode(errors="replace")
    except OSError:
        return ""
    match = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", text, re.MULTILINE)
    if match:
        return {"v": "v_prediction", "eps": "epsilon"}.get(match[1], "")
    if re.search(r"^\s*target:.*\.(?:V|Eps)Scaling\s*$", text, re.MULTILINE):
        return "v_prediction" if ".VScaling" in text else "epsilon"
    return "epsilon" if "LatentDiffusion" in text else ""  # the default of this class


def describe(path: Path, prediction: str = "") -> Checkpoint:
    """Describe a checkpoint from its header.

    Args:
        prediction: Prediction type that the user passed; it overrides that of the file.

    Raises:
        DamagedError: The file is not a complete safetensors file.
        IncompatibleError: It has no complete model, an unknown family, unsupported noise, or quantised weights.
    """
    header = folders.read_header(path)
    metadata = header.pop("__metadata__", None) or {}
    keys = set(header)
    _check_supported(path, header, metadata)
    has_vae = any(key.startswith(VAE) for key in keys)
    if any(key.startswith(JOINT) for key in keys):
        return Checkpoint(
            _detect_sd3(path, keys, header.get(PATCHES, {"shape": [0]})["shape"][0]), SD3.prediction, has_vae=has_vae
        )
    family = _detect_family(path, keys)
    channels = int((header[ENTRANCE]["shape"] if ENTRANCE in keys else [0, 4])[1])
    model_kind.check_channels(str(path), channels, 4)
    picture_input = model_kind.picture_input(channels, 4)
    named = prediction or _read_prediction(path, keys, metadata)
    zero = "ztsnr" in keys
    if zero and (named or family.prediction) == "epsilon" and family is not SD2:
        raise IncompatibleError(
            f"{path} is marked as zero terminal SNR but predicts epsilon, which gives no image at the last noise level",
            "if it predicts v: `--set prediction_type=v_prediction`",
        )
    prediction = named or ("v_prediction" if family is SD2 and not picture_input else "epsilon")
    return Checkpoint(family, prediction, not named, zero, has_vae, picture_input)


def _check_supported(path: Path, header: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Refuse files without a denoiser, with quantised weights, or with EDM noise.

    Raises:
        IncompatibleError: Its hint names what to pass instead.
    """
    if not any(key.startswith(UNET) for key in header):
        raise IncompatibleError(f"{path} has no denoiser", _suggest_use(path, set(header)))
    if any(
        key.endswith(folders.SCALED) or (each["dtype"] in folders.INTEGERS and key.startswith(UNET))
        for key, each in header.items()
    ):
        raise IncompatibleError(
            f"{path} has quantised weights with separate scales", "use it in fp16, bf16, or fp8 without scales"
        )
    noise = next((mark for mark in EDM if mark in header), "")
    if noise or metadata.get("modelspec.prediction_type", "").startswith("edm"):
        raise IncompatibleError(
            f"{path} has another kind of noise ({noise or 'edm'}, as in Playground 2.5 and CosXL)",
            "use a model that predicts epsilon or v",
        )


def _suggest_use(path: Path, keys: Collection[str]) -> str:
    """A hint for a file that is not a checkpoint."""
    if any("lora" in key or ".hada_" in key or ".lokr_" in key for key in keys):
        return f"it is a LoRA: `objtune import {shlex.quote(str(path))} --class dog --name rex` reads it"
    if any(key.startswith("model_ema.") for key in keys):
        return "its denoiser is there only as an average (model_ema): get the file with the plain weights"
    if any(key.startswith(("decoder.conv_in.", VAE)) for key in keys):
        return f"it is a VAE: `--set vae={shlex.quote(str(path))}` gives it to a base"
    if any(key.startswith(("input_blocks.", "double_blocks.", "joint_blocks.", "down_blocks.")) for key in keys):
        return "it is a denoiser alone: use a whole checkpoint, or a diffusers folder"
    return "use a whole checkpoint, or a diffusers folder"


def _detect_family(path: Path, keys: Collection[str]) -> Family:
    """Detect the family from the text encoder's keys.

    Raises:
        IncompatibleError: The family is unknown, or the file has no text encoder.
    """
    detected = next((family for start, family in MARKS if any(key.startswith(start) for key in keys)), None)
    if detected:
        return detected
    if any(key.startswith("conditioner.embedders.0.model.") for key in keys):
        raise IncompatibleError(f"{path} is a refiner: it has no first text encoder", "use the base model")
    if not any(key.startswith(("cond_stage_model.", "conditioner.", "text_encoders.")) for key in keys):
        raise IncompatibleError(f"{path} has no text encoder", "use a whole checkpoint, or a diffusers folder")
    raise IncompatibleError(
        f"{path} is of an unsupported family", "docs/reference/base-models.md lists the supported families"
    )


def _detect_sd3(path: Path, keys: Collection[str], width: int) -> Family:
    """Detect SD 3 medium, or 3.5 medium, which normalises queries and keys.

    Raises:
        IncompatibleError: The transformer has another size, or the file lacks a text encoder.
    """
    family = SD35 if any(key.endswith(".ln_q.weight") for key in keys) else SD3
    own = json.loads((LAYOUTS / family.name / family.denoiser / "config.json").read_bytes())
    blocks = {int(number) for key in keys if (number := key.removeprefix(JOINT).split(".")[0]).isdigit()}
    twice = [i for i in sorted(blocks) if f"{JOINT}{i}.x_block.attn2.qkv.weight" in keys]
    medium = own["num_layers"], own["num_attention_heads"] * own["attention_head_dim"]
    if (len(blocks), width) != medium or twice != list(own.get("dual_attention_layers") or []):
        raise IncompatibleError(
            f"{path} is not the medium model of SD 3 or 3.5: its transformer has {len(blocks)} blocks, {width} wide",
            "use the medium model, or this one as a diffusers folder",
        )
    parts = {CLIPS["text_encoder"]: "CLIP-L", CLIPS["text_encoder_2"]: "CLIP-G"}
    missing = [name for start, name in parts.items() if not any(key.startswith(start) for key in keys)]
    if missing:
        raise IncompatibleError(
            f"{path} has no {', no '.join(missing)}",
            "use the file that has them (of SD 3 `..._incl_clips`), or the diffusers folder",
        )
    return family


def _read_prediction(path: Path, keys: Collection[str], metadata: dict[str, str]) -> str:
    """The prediction type in the ModelSpec metadata or by the key `v_pred`; "" if the file has neither.

    Raises:
        IncompatibleError: The prediction type is unknown.
    """
    named = metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key") or ""
    if "v_pred" in keys or named in ("v", "v_prediction"):
        return "v_prediction"
    if named not in ("", "epsilon"):
        raise IncompatibleError(
            f"{path} has the unknown prediction type {named}",
            "known: epsilon, v; set it with `--set prediction_type=v_prediction`",
        )
    return named
