"""Single-file checkpoints (Civitai and the like): the first repositories' layout in one safetensors file, opened by diffusers' converters.

Configs of the families lie beside this module (`layouts/`), the words of the tokenizers too (`words/`: CLIP's merges from OpenCLIP, MIT
licence; T5's pieces, Apache 2.0): nothing is asked of a network.
"""

import base64
import gzip
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.families.interface import Family
from objtune_cli.families.sd1 import SD1
from objtune_cli.families.sd2 import SD2
from objtune_cli.families.sd3 import SD3, SD35
from objtune_cli.families.sdxl import SDXL

LAYOUTS = Path(__file__).parent / "layouts"
MERGES = Path(__file__).parent / "words" / "merges.txt.gz"
PIECES = Path(__file__).parent / "words" / "t5.json.gz"
MARKS = (("conditioner.embedders.1.", SDXL), ("cond_stage_model.model.", SD2), ("cond_stage_model.transformer.", SD1))
"""Starts of keys that only one family has: its text encoder's."""
UNET, ENTRANCE = "model.diffusion_model.", "model.diffusion_model.input_blocks.0.0.weight"
JOINT, PATCHES = f"{UNET}joint_blocks.", f"{UNET}x_embedder.proj.weight"
CLIPS = {"text_encoder": "text_encoders.clip_l.transformer.", "text_encoder_2": "text_encoders.clip_g.transformer."}
T5, VAE = "text_encoders.t5xxl.transformer.", "first_stage_model."
STARTS = {"unet": UNET, "transformer": UNET, "vae": VAE}
"""Starts of the keys of each part; of text encoders, those of SD 3's files."""
SCALED = (".scale_weight", ".weight_scale", "scaled_fp8", ".comfy_quant", ".absmax")
"""Ends of keys beside weights that say something only together with them."""


def described(path: Path) -> tuple[Family, str]:
    """Family of a checkpoint file and its prediction type, from its header alone.

    Raises:
        InputError: No safetensors file, or none of a whole model. IncompatibleError: of no known family, or form of numbers.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:
            keys, said = set(opened.keys()), opened.metadata() or {}
            shapes = {key: opened.get_slice(key).get_shape() for key in (ENTRANCE, PATCHES) if key in keys}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no whole safetensors file: {str(error).splitlines()[0]}", "download it again") from None
    if not any(key.startswith(UNET) for key in keys):
        lora = any("lora" in key for key in keys)
        raise InputError(
            f"{path} holds no denoiser",
            "it is a LoRA: `objtune import` reads it" if lora else "give a whole checkpoint, or a diffusers folder",
        )
    if any(key.endswith(SCALED) for key in keys):
        raise IncompatibleError(f"{path} holds quantised weights with scales of their own", "give it in fp16, bf16, or fp8 without scales")
    if any(key.startswith(JOINT) for key in keys):
        return _joint(path, keys, shapes.get(PATCHES, [0])[0]), SD3.prediction
    family = next((family for start, family in MARKS if any(key.startswith(start) for key in keys)), None)
    if family is None:
        raise IncompatibleError(f"{path} is of no family that is known, or has no text encoder", "docs/bases.md says which are")
    channels = shapes.get(ENTRANCE, [0, 4])[1]
    if channels != 4:
        raise IncompatibleError(
            f"{path} is an inpainting model: its denoiser takes {channels} channels", "give one that draws from words alone"
        )
    return family, _prediction(family, keys, said)


def _joint(path: Path, keys: Collection[str], width: int) -> Family:
    """SD 3 medium, or 3.5 medium, which norms queries and keys.

    Raises:
        IncompatibleError: Its transformer has another size, or a part is not in the file.
    """
    family = SD35 if any(key.endswith(".ln_q.weight") for key in keys) else SD3
    own = json.loads((LAYOUTS / family.name / family.denoiser / "config.json").read_text())
    blocks = {int(number) for key in keys if (number := key.removeprefix(JOINT).split(".")[0]).isdigit()}
    twice = [i for i in sorted(blocks) if f"{JOINT}{i}.x_block.attn2.qkv.weight" in keys]
    medium = own["num_layers"], own["num_attention_heads"] * own["attention_head_dim"]
    if (len(blocks), width) != medium or twice != list(own.get("dual_attention_layers") or []):
        raise IncompatibleError(
            f"{path} is no medium model of SD 3 or 3.5: its transformer has {len(blocks)} blocks, {width} wide",
            "give the medium model, or this one as a diffusers folder",
        )
    parts = {CLIPS["text_encoder"]: "CLIP-L", CLIPS["text_encoder_2"]: "CLIP-G", VAE: "autoencoder"}
    missing = [name for start, name in parts.items() if not any(key.startswith(start) for key in keys)]
    if missing:
        raise IncompatibleError(
            f"{path} holds no {', no '.join(missing)}", "give the file that has them (of SD 3 `..._incl_clips`), or the diffusers folder"
        )
    return family


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


def reader_tokenizer() -> Any:
    """T5's tokenizer: 32 000 pieces with their scores, 100 marks, and its normalisation of letters."""
    from transformers import T5TokenizerFast  # type: ignore[attr-defined]

    said = json.loads(gzip.decompress(PIECES.read_bytes()))
    charsmap = base64.b64decode(said["charsmap"])
    return T5TokenizerFast(vocab=[tuple(piece) for piece in said["vocab"]], _spm_precompiled_charsmap=charsmap, model_max_length=512)


def open_words(family: Family, path: Path, layout: Path) -> list[tuple[Any, Any]]:
    """Tokenizer and text encoder, each pair of the family.

    Raises:
        ValueError: A weight is not in the file.
    """
    import transformers
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    checkpoint = _tensors(path, ("cond_stage_model.", "conditioner.", *CLIPS.values()))
    found = []
    for name, pad in zip(family.encoders, pads(family), strict=True):
        kind = getattr(transformers, json.loads((layout / name / "config.json").read_text())["architectures"][0])
        # Of SD 3's CLIP-L the converter takes the identity for its projection, whatever the file holds.
        encoder = create_diffusers_clip_model_from_ldm(kind, checkpoint, subfolder=name, config=str(layout), local_files_only=True)
        found.append((tokenizer(pad), _whole(encoder, name)))
    return found


def open_reader(family: Family, path: Path, layout: Path, dtype: Any) -> tuple[Any, Any]:
    """T5's tokenizer and encoder; none where the file has none, or the family.

    Raises:
        ValueError: A weight is not in the file.
    """
    import torch
    from transformers import T5Config, T5EncoderModel

    if family not in (SD3, SD35) or not (checkpoint := _tensors(path, (T5,))):
        return None, None
    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config.from_pretrained(layout / "text_encoder_3", local_files_only=True))
    # In fp16 the layers that overflow stay in float32, as where a folder is opened.
    wide = {torch.float16: (".wo.weight",)}.get(dtype, ())
    read = {key.removeprefix(T5): value.to(torch.float32 if key.endswith(wide) else dtype) for key, value in checkpoint.items()}
    encoder.load_state_dict(read, strict=False, assign=True)
    encoder.tie_weights()
    return reader_tokenizer(), _whole(encoder, "text_encoder_3").eval()


def open_part(name: str, path: Path, layout: Path) -> Any:
    """The denoiser ("unet", "transformer") or the autoencoder ("vae").

    Raises:
        ValueError: A weight is not in the file.
    """
    import diffusers

    kind = {"unet": diffusers.UNet2DConditionModel, "transformer": diffusers.SD3Transformer2DModel, "vae": diffusers.AutoencoderKL}[name]
    checkpoint = _tensors(path, (STARTS[name],))
    return _whole(kind.from_single_file(checkpoint, config=str(layout), subfolder=name, local_files_only=True), name)


def _tensors(path: Path, starts: tuple[str, ...]) -> dict[str, Any]:
    """Those of a file whose names begin so; fp8 as bf16, which has each of its values."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        found = {key: opened.get_tensor(key) for key in opened.keys() if key.startswith(starts)}  # noqa: SIM118
    eighths = (torch.float8_e4m3fn, torch.float8_e5m2)
    return {key: value.to(torch.bfloat16) if value.dtype in eighths else value for key, value in found.items()}


def _whole(network: Any, name: str) -> Any:
    """The network, if all of it came from the file."""
    missing = next((key for key, value in network.named_parameters() if value.is_meta), None)
    if missing:
        raise ValueError(f"{missing} of {name} is not in it")
    return network
