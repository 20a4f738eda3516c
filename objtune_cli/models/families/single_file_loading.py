"""Load the components of a single-file checkpoint with the converters of diffusers."""

import json
from pathlib import Path
from typing import Any

from objtune_cli.errors import DamagedError
from objtune_cli.models.families import bundled_tokenizers
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.families.component_loading import refuse_incomplete
from objtune_cli.models.families.family import Family
from objtune_cli.models.families.sd3 import SD3, SD35
from objtune_cli.models.families.single_file import CLIPS, ENTRANCE, T5, UNET, VAE

STARTS = {"unet": UNET, "transformer": UNET, "vae": VAE}
"""Component to the prefix of its keys."""
OLD_TEXT_MODEL, TEXT_MODEL = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."
"""Prefix of the text encoder's keys in some old files, and in all others."""
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Former names in diffusers of the layers of a VAE's attention."""


def load_text_encoders(family: Family, path: Path, layout: Path) -> list[tuple[Any, Any]]:
    """Load tokenizer and text encoder for each of `Family.encoders`.

    Raises:
        DamagedError: The file lacks a weight.
    """
    import transformers
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    checkpoint = _read_tensors(path, ("cond_stage_model.", "conditioner.", *CLIPS.values()))
    pairs = []
    for name, pad in zip(family.encoders, bundled_tokenizers.pad_tokens(family), strict=True):
        kind = getattr(transformers, json.loads((layout / name / "config.json").read_bytes())["architectures"][0])
        # For the CLIP-L of SD 3 the converter ignores the projection in the file and uses the identity.
        encoder = create_diffusers_clip_model_from_ldm(
            kind, checkpoint, subfolder=name, config=str(layout), local_files_only=True
        )
        pairs.append((bundled_tokenizers.clip_tokenizer(pad), _require_complete(path, encoder, name)))
    return pairs


def load_t5(family: Family, path: Path, layout: Path, dtype: Any) -> tuple[Any, Any]:
    """Load T5's tokenizer and encoder; (None, None) if the family or the file has no T5.

    Raises:
        DamagedError: The file lacks a weight.
    """
    import torch
    from transformers import T5Config, T5EncoderModel

    if family not in (SD3, SD35) or not (checkpoint := _read_tensors(path, (T5,))):
        return None, None
    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config.from_pretrained(layout / "text_encoder_3", local_files_only=True))
    # In fp16 the layers that overflow stay in float32, as transformers does for folders.
    wide = {torch.float16: (".wo.weight",)}.get(dtype, ())
    weights = {
        key.removeprefix(T5): value.to(torch.float32 if key.endswith(wide) else dtype)
        for key, value in checkpoint.items()
    }
    encoder.load_state_dict(weights, strict=False, assign=True)
    encoder.tie_weights()
    return bundled_tokenizers.t5_tokenizer(), _require_complete(path, encoder, "text_encoder_3").eval()


def load_component(name: str, path: Path, layout: Path) -> Any:
    """Load the denoiser ("unet" or "transformer") or the VAE ("vae"); a VAE may be a file of its own, with the keys of either layout.

    Raises:
        DamagedError: The file lacks a weight, or a weight has another shape.
    """
    import diffusers

    kind = {
        "unet": diffusers.UNet2DConditionModel,
        "transformer": diffusers.SD3Transformer2DModel,
        "vae": diffusers.AutoencoderKL,
    }[name]
    checkpoint = _read_tensors(path, (STARTS[name],))
    if name == "vae" and not checkpoint:  # keys of a VAE file have no prefix
        checkpoint = {VAE + key: value for key, value in _read_tensors(path, ("",)).items()}
    channels = {"in_channels": checkpoint[ENTRANCE].shape[1]} if ENTRANCE in checkpoint else {}  # of inpainting models
    try:
        if name == "vae" and any(key.startswith(f"{VAE}decoder.up_blocks.") for key in checkpoint):
            return _require_complete(
                path,
                _load_vae_names(
                    kind, {key.removeprefix(VAE): value for key, value in checkpoint.items()}, layout / name
                ),
                name,
            )
        return _require_complete(
            path,
            kind.from_single_file(checkpoint, config=str(layout), subfolder=name, local_files_only=True, **channels),
            name,
        )
    except NotImplementedError:  # a weight that the file lacks is still on the meta device
        raise DamagedError(f"{path} is damaged: its {name} lacks weights", folders.AGAIN) from None
    except (ValueError, RuntimeError, KeyError) as error:
        raise DamagedError(
            f"{path} is damaged: its {name} cannot be opened: {str(error).splitlines()[0]}", folders.AGAIN
        ) from None


def _load_vae_names(kind: Any, weights: dict[str, Any], config: Path) -> Any:
    """Load a VAE whose weights have diffusers' present or former names."""
    import torch

    with torch.device("meta"):
        network = kind.from_config(kind.load_config(config, local_files_only=True))
    for old, new in OLD_ATTENTION.items():
        weights = {
            key.replace(f".attentions.0.{old}.", f".attentions.0.{new}."): value for key, value in weights.items()
        }
    network.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False, assign=True)
    return network


def _read_tensors(path: Path, starts: tuple[str, ...]) -> dict[str, Any]:
    """Read the tensors whose keys have one of these prefixes; fp8 becomes bf16, which holds all its values."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {_rename_old_key(key): file.get_tensor(key) for key in file.keys() if key.startswith(starts)}  # noqa: SIM118
    fp8 = (torch.float8_e4m3fn, torch.float8_e5m2)
    return {key: value.to(torch.bfloat16) if value.dtype in fp8 else value for key, value in tensors.items()}


def _rename_old_key(key: str) -> str:
    """The present name of a text encoder key of old files."""
    return (
        key.replace(OLD_TEXT_MODEL, TEXT_MODEL, 1)
        if key.startswith(
            (f"{OLD_TEXT_MODEL}embeddings.", f"{OLD_TEXT_MODEL}encoder.", f"{OLD_TEXT_MODEL}final_layer_norm.")
        )
        else key
    )


def _require_complete(path: Path, network: Any, name: str) -> Any:
    """Return the network if the file had all of its weights; others are still on the meta device.

    Raises:
        DamagedError: Names a missing weight.
    """
    refuse_incomplete(
        str(path),
        name,
        [key for key, value in (*network.named_parameters(), *network.named_buffers()) if value.is_meta],
    )
    return network
