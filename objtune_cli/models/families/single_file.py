"""Single-file checkpoints (Civitai and the like): the first repositories' layout in one safetensors file, opened by diffusers' converters.

Configs of the families lie beside this module (`layouts/`), the words of the tokenizers too (`words/`: CLIP's merges from OpenCLIP, MIT
licence; T5's pieces, Apache 2.0): nothing is asked of a network.
"""

import base64
import gzip
import json
import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError
from objtune_cli.models.families import model_kind
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.families.component_loading import refuse_incomplete
from objtune_cli.models.families.family import Family
from objtune_cli.models.families.sd1 import SD1
from objtune_cli.models.families.sd2 import SD2
from objtune_cli.models.families.sd3 import SD3, SD35
from objtune_cli.models.families.sdxl import SDXL

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
OLD_WORDS, WORDS = "cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."
"""Start of the text encoder's keys in some old files, and in all others."""
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names that diffusers once had for the layers of a VAE's attention."""
MAX_CONFIG = 1 << 20
"""Bytes of a config beside a checkpoint that are read."""
EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
"""Marks of models whose noise is another one: Playground 2.5, CosXL."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file says of itself.

    Attributes:
        prediction: What its denoiser predicts. assumed: Whether that is only what the family's first model does. zero_snr: Whether its noise ends in noise
            alone (zero terminal signal-to-noise ratio). has_vae: Whether it holds an autoencoder.
    """

    family: Family
    prediction: str
    assumed: bool = False
    zero_snr: bool = False
    has_vae: bool = True

    @property
    def schedule(self) -> dict[str, Any]:
        """Values of the scheduler's config that the file knows better than its family's config."""
        marked: dict[str, Any] = (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if self.zero_snr else {}
        )
        return {"prediction_type": self.prediction} | marked


def check_kind(path: Path) -> None:
    """Refuse a file that is not in safetensors form.

    Raises:
        IncompatibleError: Says what to give in its place. MissingError: it cannot be read.
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
    raise IncompatibleError(f"{path} is no .safetensors file", hint)


def choose_prediction(path: Path, prediction: str) -> tuple[Checkpoint, str]:
    """What a checkpoint is, and what its denoiser predicts if that is not what the file alone gives: the user's word, else that of a config beside it.

    Raises:
        DamagedError, IncompatibleError: As `describe`.
    """
    try:
        own = describe(path)
    except IncompatibleError:  # the user's word may be what is missing
        return describe(path, prediction), prediction
    wanted = prediction or (read_config_beside(path) if own.assumed else "")
    if wanted in ("", own.prediction):
        return replace(own, assumed=own.assumed and not wanted), ""
    return describe(path, wanted), wanted


def read_config_beside(path: Path) -> str:
    """What the denoiser predicts by `<checkpoint>.yaml`, the first repositories' config, which A1111 and ComfyUI read too; empty where there is none."""
    try:
        text = path.with_suffix(".yaml").read_bytes()[:MAX_CONFIG].decode(errors="replace")
    except OSError:
        return ""
    said = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", text, re.MULTILINE)
    if said:
        return {"v": "v_prediction", "eps": "epsilon"}.get(said[1], "")
    if re.search(r"^\s*target:.*\.(?:V|Eps)Scaling\s*$", text, re.MULTILINE):
        return "v_prediction" if ".VScaling" in text else "epsilon"
    return "epsilon" if "LatentDiffusion" in text else ""  # what its class does where the config says nothing


def describe(path: Path, prediction: str = "") -> Checkpoint:
    """What a checkpoint file is, from its header alone.

    Args:
        prediction: What its denoiser predicts, where the user says it; then the file is not asked.

    Raises:
        DamagedError: No safetensors file, or not a whole one. IncompatibleError: no whole model, of no known family, of another kind of noise, or form of numbers.
    """
    header = folders.read_header(path)
    said = header.pop("__metadata__", None) or {}
    keys = set(header)
    if not any(key.startswith(UNET) for key in keys):
        raise IncompatibleError(f"{path} holds no denoiser", _otherwise(path, keys))
    if any(
        key.endswith(folders.SCALED) or (each["dtype"] in folders.INTEGERS and key.startswith(UNET))
        for key, each in header.items()
    ):
        raise IncompatibleError(
            f"{path} holds quantised weights with scales of their own", "give it in fp16, bf16, or fp8 without scales"
        )
    noise = next((mark for mark in EDM if mark in keys), "")
    if noise or said.get("modelspec.prediction_type", "").startswith("edm"):
        raise IncompatibleError(
            f"{path} is of another kind of noise ({noise or 'edm'}, as Playground 2.5 and CosXL have it)",
            "give a model that predicts epsilon or v",
        )
    has_vae = any(key.startswith(VAE) for key in keys)
    if any(key.startswith(JOINT) for key in keys):
        return Checkpoint(
            _joint(path, keys, header.get(PATCHES, {"shape": [0]})["shape"][0]), SD3.prediction, has_vae=has_vae
        )
    family = _family(path, keys)
    model_kind.check_channels(str(path), int((header[ENTRANCE]["shape"] if ENTRANCE in keys else [0, 4])[1]), 4)
    named = prediction or _prediction(path, keys, said)
    zero = "ztsnr" in keys
    if zero and (named or family.prediction) == "epsilon" and family is not SD2:
        raise IncompatibleError(
            f"{path} has the mark of zero terminal SNR and predicts epsilon: of its last level nothing can be drawn",
            "if it predicts v: `--set prediction_type=v_prediction`",
        )
    return Checkpoint(family, named or ("v_prediction" if family is SD2 else "epsilon"), not named, zero, has_vae)


def _otherwise(path: Path, keys: Collection[str]) -> str:
    """What to do with a file that is no checkpoint."""
    if any("lora" in key or ".hada_" in key or ".lokr_" in key for key in keys):
        return f"it is a LoRA: `objtune import {shlex.quote(str(path))} --class dog --name rex` reads it"
    if any(key.startswith("model_ema.") for key in keys):
        return "its denoiser is there only as an average (model_ema): get the file with the plain weights"
    if any(key.startswith(("decoder.conv_in.", VAE)) for key in keys):
        return f"it is a VAE: `--set vae={shlex.quote(str(path))}` gives it to a base"
    if any(key.startswith(("input_blocks.", "double_blocks.", "joint_blocks.", "down_blocks.")) for key in keys):
        return "it is a denoiser alone: give a whole checkpoint, or a diffusers folder"
    return "give a whole checkpoint, or a diffusers folder"


def _family(path: Path, keys: Collection[str]) -> Family:
    """The family whose text encoder a file holds.

    Raises:
        IncompatibleError: None is known.
    """
    found = next((family for start, family in MARKS if any(key.startswith(start) for key in keys)), None)
    if found:
        return found
    if any(key.startswith("conditioner.embedders.0.model.") for key in keys):
        raise IncompatibleError(f"{path} is a refiner: it has no first text encoder", "give the base model")
    if not any(key.startswith(("cond_stage_model.", "conditioner.", "text_encoders.")) for key in keys):
        raise IncompatibleError(f"{path} holds no text encoder", "give a whole checkpoint, or a diffusers folder")
    raise IncompatibleError(
        f"{path} is of no family that is known", "docs/reference/base-models.md lists the supported families"
    )


def _joint(path: Path, keys: Collection[str], width: int) -> Family:
    """SD 3 medium, or 3.5 medium, which norms queries and keys.

    Raises:
        IncompatibleError: Its transformer has another size, or a part is not in the file.
    """
    family = SD35 if any(key.endswith(".ln_q.weight") for key in keys) else SD3
    own = json.loads((LAYOUTS / family.name / family.denoiser / "config.json").read_bytes())
    blocks = {int(number) for key in keys if (number := key.removeprefix(JOINT).split(".")[0]).isdigit()}
    twice = [i for i in sorted(blocks) if f"{JOINT}{i}.x_block.attn2.qkv.weight" in keys]
    medium = own["num_layers"], own["num_attention_heads"] * own["attention_head_dim"]
    if (len(blocks), width) != medium or twice != list(own.get("dual_attention_layers") or []):
        raise IncompatibleError(
            f"{path} is no medium model of SD 3 or 3.5: its transformer has {len(blocks)} blocks, {width} wide",
            "give the medium model, or this one as a diffusers folder",
        )
    parts = {CLIPS["text_encoder"]: "CLIP-L", CLIPS["text_encoder_2"]: "CLIP-G"}
    missing = [name for start, name in parts.items() if not any(key.startswith(start) for key in keys)]
    if missing:
        raise IncompatibleError(
            f"{path} holds no {', no '.join(missing)}",
            "give the file that has them (of SD 3 `..._incl_clips`), or the diffusers folder",
        )
    return family


def _prediction(path: Path, keys: Collection[str], said: dict[str, str]) -> str:
    """What ModelSpec's metadata or the mark of v-predicting models says; empty where nothing does.

    Raises:
        IncompatibleError: It names one that is not known.
    """
    named = said.get("modelspec.prediction_type") or said.get("modelspec.predict_key") or ""
    if "v_pred" in keys or named in ("v", "v_prediction"):
        return "v_prediction"
    if named not in ("", "epsilon"):
        raise IncompatibleError(
            f"{path} says that it predicts {named}",
            "known: epsilon, v; `--set prediction_type=v_prediction` says it better",
        )
    return named


def tokenizer(pad: str) -> Any:
    """CLIP's tokenizer: 256 bytes, the same at the end of a word, 48 894 merges, and the two marks."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(MERGES.read_bytes()).decode().split("\n")
    merges: Any = [tuple(line.split()) for line in lines if line]
    letters = list(bytes_to_unicode().values())
    pieces = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(pair) for pair in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=77, pad_token=pad
    )


def pads(family: Family) -> tuple[str, ...]:
    """What each text encoder's prompts are filled up with."""
    return (("!",) if family is SD2 else ("<|endoftext|>", "!"))[: len(family.encoders)]


def reader_tokenizer() -> Any:
    """T5's tokenizer: 32 000 pieces with their scores, 100 marks, and its normalisation of letters."""
    from transformers import T5TokenizerFast  # type: ignore[attr-defined]

    said = json.loads(gzip.decompress(PIECES.read_bytes()))
    charsmap = base64.b64decode(said["charsmap"])
    return T5TokenizerFast(
        vocab=[tuple(piece) for piece in said["vocab"]], _spm_precompiled_charsmap=charsmap, model_max_length=512
    )


def load_text_encoders(family: Family, path: Path, layout: Path) -> list[tuple[Any, Any]]:
    """Tokenizer and text encoder, each pair of the family.

    Raises:
        DamagedError: A weight is not in the file.
    """
    import transformers
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    checkpoint = _tensors(path, ("cond_stage_model.", "conditioner.", *CLIPS.values()))
    found = []
    for name, pad in zip(family.encoders, pads(family), strict=True):
        kind = getattr(transformers, json.loads((layout / name / "config.json").read_bytes())["architectures"][0])
        # Of SD 3's CLIP-L the converter takes the identity for its projection, whatever the file holds.
        encoder = create_diffusers_clip_model_from_ldm(
            kind, checkpoint, subfolder=name, config=str(layout), local_files_only=True
        )
        found.append((tokenizer(pad), _whole(path, encoder, name)))
    return found


def load_t5(family: Family, path: Path, layout: Path, dtype: Any) -> tuple[Any, Any]:
    """T5's tokenizer and encoder; none where the file has none, or the family.

    Raises:
        DamagedError: A weight is not in the file.
    """
    import torch
    from transformers import T5Config, T5EncoderModel

    if family not in (SD3, SD35) or not (checkpoint := _tensors(path, (T5,))):
        return None, None
    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config.from_pretrained(layout / "text_encoder_3", local_files_only=True))
    # In fp16 the layers that overflow stay in float32, as where a folder is opened.
    wide = {torch.float16: (".wo.weight",)}.get(dtype, ())
    read = {
        key.removeprefix(T5): value.to(torch.float32 if key.endswith(wide) else dtype)
        for key, value in checkpoint.items()
    }
    encoder.load_state_dict(read, strict=False, assign=True)
    encoder.tie_weights()
    return reader_tokenizer(), _whole(path, encoder, "text_encoder_3").eval()


def load_component(name: str, path: Path, layout: Path) -> Any:
    """The denoiser ("unet", "transformer") or the autoencoder ("vae"), which may also stand in a file of its own, under either layout's names.

    Raises:
        DamagedError: A weight is not in the file, or of another shape.
    """
    import diffusers

    kind = {
        "unet": diffusers.UNet2DConditionModel,
        "transformer": diffusers.SD3Transformer2DModel,
        "vae": diffusers.AutoencoderKL,
    }[name]
    checkpoint = _tensors(path, (STARTS[name],))
    if name == "vae" and not checkpoint:  # a VAE's own file has no start before its names
        checkpoint = {VAE + key: value for key, value in _tensors(path, ("",)).items()}
    try:
        if name == "vae" and any(key.startswith(f"{VAE}decoder.up_blocks.") for key in checkpoint):
            return _whole(
                path,
                _own_names(kind, {key.removeprefix(VAE): value for key, value in checkpoint.items()}, layout / name),
                name,
            )
        return _whole(
            path, kind.from_single_file(checkpoint, config=str(layout), subfolder=name, local_files_only=True), name
        )
    except NotImplementedError:  # weights that no file fills stay without a place in memory
        raise DamagedError(f"{path} is damaged: its {name} lacks weights", folders.AGAIN) from None
    except (ValueError, RuntimeError, KeyError) as error:
        raise DamagedError(
            f"{path} is damaged: its {name} cannot be opened: {str(error).splitlines()[0]}", folders.AGAIN
        ) from None


def _own_names(kind: Any, weights: dict[str, Any], config: Path) -> Any:
    """A network from weights under the names that diffusers has, or had, for them."""
    import torch

    with torch.device("meta"):
        network = kind.from_config(kind.load_config(config, local_files_only=True))
    for old, new in OLD_ATTENTION.items():
        weights = {
            key.replace(f".attentions.0.{old}.", f".attentions.0.{new}."): value for key, value in weights.items()
        }
    network.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False, assign=True)
    return network


def _tensors(path: Path, starts: tuple[str, ...]) -> dict[str, Any]:
    """Those of a file whose names begin so; fp8 as bf16, which has each of its values."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        found = {_renamed(key): opened.get_tensor(key) for key in opened.keys() if key.startswith(starts)}  # noqa: SIM118
    eighths = (torch.float8_e4m3fn, torch.float8_e5m2)
    return {key: value.to(torch.bfloat16) if value.dtype in eighths else value for key, value in found.items()}


def _renamed(key: str) -> str:
    """The key of an old file's text encoder as all others have it."""
    return (
        key.replace(OLD_WORDS, WORDS, 1)
        if key.startswith((f"{OLD_WORDS}embeddings.", f"{OLD_WORDS}encoder.", f"{OLD_WORDS}final_layer_norm."))
        else key
    )


def _whole(path: Path, network: Any, name: str) -> Any:
    """The network, if all of it came from the file: what did not is left without a place in memory.

    Raises:
        DamagedError: Names a weight that is missing.
    """
    refuse_incomplete(
        str(path),
        name,
        [key for key, value in (*network.named_parameters(), *network.named_buffers()) if value.is_meta],
    )
    return network
