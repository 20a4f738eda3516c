"""Single-file checkpoints (Civitai and the like): the first repositories' layout in one safetensors file, opened by diffusers' converters.

Configs of the families lie beside this module (`layouts/`), the tokenizer's merges too (`words/`, from OpenCLIP, MIT licence):
nothing is asked of a network.
"""

import gzip
from collections.abc import Collection
from pathlib import Path
from typing import Any

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.families.interface import Family
from objtune_cli.families.sd1 import SD1
from objtune_cli.families.sd2 import SD2
from objtune_cli.families.sdxl import SDXL

LAYOUTS = Path(__file__).parent / "layouts"
MERGES = Path(__file__).parent / "words" / "merges.txt.gz"
MARKS = (("conditioner.embedders.1.", SDXL), ("cond_stage_model.model.", SD2), ("cond_stage_model.transformer.", SD1))
"""Starts of keys that only one family has: its text encoder's."""
UNET, ENTRANCE = "model.diffusion_model.", "model.diffusion_model.input_blocks.0.0.weight"


def described(path: Path) -> tuple[Family, str]:
    """Family of a checkpoint file and its prediction type, from its header alone.

    Raises:
        InputError: No safetensors file, or none of a whole model. IncompatibleError: of no known family.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:
            keys, said = set(opened.keys()), opened.metadata() or {}
            entrance = opened.get_slice(ENTRANCE).get_shape() if ENTRANCE in keys else [0, 4]
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no whole safetensors file: {str(error).splitlines()[0]}", "download it again") from None
    if not any(key.startswith(UNET) for key in keys):
        lora = any("lora" in key for key in keys)
        raise InputError(
            f"{path} holds no denoiser",
            "it is a LoRA: `objtune import` reads it" if lora else "give a whole checkpoint, or a diffusers folder",
        )
    family = next((family for start, family in MARKS if any(key.startswith(start) for key in keys)), None)
    if family is None:
        raise IncompatibleError(f"{path} is of no family that is known, or has no text encoder", "docs/bases.md says which are")
    if entrance[1] != 4:
        raise IncompatibleError(
            f"{path} is an inpainting model: its denoiser takes {entrance[1]} channels", "give one that draws from words alone"
        )
    return family, _prediction(family, keys, said)


def _prediction(family: Family, keys: Collection[str], said: dict[str, str]) -> str:
    """What ModelSpec's metadata or the mark of v-predicting SDXL models says; else what the family's first model does."""
    named = said.get("modelspec.prediction_type", "")
    if "v_pred" in keys or named == "v":
        return "v_prediction"
    if named:
        return "epsilon"
    return "v_prediction" if family is SD2 else "epsilon"


def tokenizer(pad: str) -> Any:
    """CLIP's tokenizer: 256 bytes, the same at the end of a word, 48 894 merges, and the two marks."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")
    merges: Any = [tuple(line.split()) for line in lines if line]
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=77, pad_token=pad)


def pads(family: Family) -> tuple[str, ...]:
    """What each text encoder's prompts are filled up with."""
    return (("!",) if family is SD2 else ("<|endoftext|>", "!"))[: len(family.encoders)]


def open_words(family: Family, path: Path, layout: Path) -> list[tuple[Any, Any]]:
    """Tokenizer and text encoder, each pair of the family."""
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm, load_single_file_checkpoint
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    checkpoint = load_single_file_checkpoint(str(path), local_files_only=True)
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    found = []
    for name, pad in zip(family.encoders, pads(family), strict=True):
        encoder = create_diffusers_clip_model_from_ldm(kinds[name], checkpoint, subfolder=name, config=str(layout), local_files_only=True)
        found.append((tokenizer(pad), encoder))
    return found


def open_part(kind: Any, name: str, path: Path, layout: Path) -> Any:
    """The denoiser ("unet") or the autoencoder ("vae") as diffusers' class `kind`."""
    return kind.from_single_file(str(path), config=str(layout), subfolder=name, local_files_only=True)
