"""Reads textual inversion files of other tools: one tensor, or one per text encoder, in one file or two."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.lora import file_names
from objtune_cli.lora.import_kinds import is_lora
from objtune_cli.lora.import_source import BUNDLED_VECTORS, FLOAT_TYPES, LARGEST_NUMBER, Source
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.families import FAMILIES
from objtune_cli.models.placeholders import concat_encoders

ENCODER_INDEX = {
    "clip_l": 0, "clip_g": 1, "clip_h": 0, "text_encoders_0": 0, "text_encoders_1": 1, "text_encoder": 0, "text_encoder_2": 1,
}  # fmt: skip
"""Key to index of the text encoder; the numbered keys are those of diffusers' advanced scripts."""
IGNORED_KEYS = {"t5", "t5xxl", "text_encoders_2"}
"""Keys of vectors for T5, which has no placeholder tokens in this package."""
A1111_KEY = re.compile(r"string_to_param\.(.+)|emb_params|^\*$")
"""Keys of A1111's files, with or without the placeholder."""
A1111_TOKEN_ID = "string_to_token."
"""Prefix of the keys of A1111's pickles that hold the token's id."""
NUMBERED_KEY = re.compile(r"(.*?)[_-]?(\d*)")
FAMILY_BY_WIDTH = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "Stable Diffusion XL, its second text encoder",
}
"""Width of a token's vector to the model family."""


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The vectors of one token in one file.

    Attributes:
        parts: Index of the text encoder to (k, d); None as the index where the file does not say.
        word: The token, if the file names one. unread: Whether the file also has vectors for T5.
    """

    what: str
    parts: Mapping[int | None, Tensor]
    word: str = ""
    unread: bool = False


def find_vectors(source: Source) -> TokenVectors | None:
    """Find the vectors in an embedding file or in a LoRA file that includes them; None if there are none.

    Raises:
        InputError: The file has several tokens, or tensors that are no token vectors.
    """
    bundled: dict[str, dict[str, Tensor]] = {}
    for key, value in source.weights.items():
        match = BUNDLED_VECTORS.fullmatch(key)
        if match:
            bundled.setdefault(match[1], {})[match[2]] = value
    if len(bundled) > 1:
        raise InputError(
            f"{source.what} contains the words {', '.join(sorted(bundled))}", "import a file with one token"
        )
    if bundled:
        ((word, named),) = bundled.items()
        return _read_vectors(source.what, named, word)
    return None if is_lora(source.weights) else _read_vectors(source.what, source.weights)


def _read_vectors(what: str, named: Mapping[str, Tensor], word: str = "") -> TokenVectors:
    """Assign vectors to text encoders by their keys."""
    parts: dict[int | None, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    unread = False
    for key, value in named.items():
        if key.startswith(A1111_TOKEN_ID):
            continue
        if key in IGNORED_KEYS:
            unread = True
            continue
        match = A1111_KEY.fullmatch(key)
        if key in ENCODER_INDEX:
            if ENCODER_INDEX[key] in parts:
                raise InputError(
                    f"{what} contains two sets of vectors for one text encoder: {', '.join(sorted(named))[:120]}",
                    "import a file with one token",
                )
            parts[ENCODER_INDEX[key]] = _check_vectors(what, key, value)
        else:
            tokens[match[1] or "" if match else key] = value
    if tokens and parts:
        raise InputError(
            f"{what} contains vectors under {', '.join(sorted(named)[:4])}, and objtune does not read all of them",
            "import a file with one token",
        )
    if tokens:
        in_order = _sort_numbered_keys(what, tokens)
        parts[None] = torch.cat([_check_vectors(what, key, tokens[key]) for key in in_order])
        word = word or in_order[0]
    if not parts:
        raise InputError(f"{what} is neither a LoRA nor an embedding", "give a LoRA or an embedding")
    return TokenVectors(what, parts, word, unread)


def _sort_numbered_keys(what: str, tokens: Mapping[str, Tensor]) -> list[str]:
    """Keys of one token's vectors; several must be numbered (`<s0>`, `<s1>`; `<dog>`, `<dog>_1`) and are sorted by number.

    Raises:
        InputError: The keys belong to several tokens or to none.
    """
    if len(tokens) == 1:
        return list(tokens)
    split = {key: NUMBERED_KEY.fullmatch(re.sub("[<>]", "", key)) for key in tokens}
    numbers = {key: int(match[2] or 0) if match else -1 for key, match in split.items()}
    first = min(numbers.values())
    one = len({match[1] if match else key for key, match in split.items()}) == 1
    single = all(value.ndim == 1 or (value.ndim == 2 and len(value) == 1) for value in tokens.values())
    if (
        one
        and single
        and sorted(numbers.values()) == list(range(first, first + len(tokens)))
        and len({v.shape[-1] for v in tokens.values()}) == 1
    ):
        return sorted(tokens, key=lambda key: numbers[key])
    listed = ", ".join(sorted(tokens)[:3])[:200]
    if all(key.startswith("<") for key in tokens):
        raise InputError(f"{what} contains several tokens: {listed}", "import a file with one token")
    raise InputError(f"{what} is neither a LoRA nor an embedding: it contains {listed}", "give a LoRA or an embedding")


def _check_vectors(what: str, key: str, value: Tensor) -> Tensor:
    """Check a tensor and return vectors (k, d), float32."""
    if value.ndim not in (1, 2) or not value.numel():
        raise InputError(
            f"{what} contains no token vectors: {key[:60]} {tuple(value.shape)}",
            "a token has one vector or more, (k, d)",
        )
    if value.dtype not in FLOAT_TYPES:
        raise InputError(
            f"{what} contains {str(value.dtype).removeprefix('torch.')} numbers, which are not supported as vectors",
            "give it in fp32, fp16 or bf16",
        )
    rows = value.float() if value.ndim == 2 else value.float()[None]
    if not bool(torch.isfinite(rows).all()):
        raise InputError(f"{what} has NaN or infinite values", "the training that wrote it had diverged")
    if float(rows.abs().max()) > LARGEST_NUMBER:
        raise InputError(
            f"{what} contains numbers too large to compute with", "the training that wrote it had diverged"
        )
    return rows


def join_vectors(model: BaseModel, files: Sequence[TokenVectors]) -> Tensor:
    """Join the vectors of one token for all text encoders along the last axis, from one file or one per encoder.

    Raises:
        IncompatibleError: The vectors are for another family, or those of one encoder are missing. InputError: Two tokens or too many vectors.
    """
    what = " and ".join(vectors.what for vectors in files)
    halves: dict[int, Tensor] = {}
    for vectors in files:
        for index, rows in vectors.parts.items():
            place = _match_encoder(model, vectors, index, rows)
            if place in halves:
                raise InputError(
                    "two files of the same kind belong to two objects"
                    if len(files) > 1
                    else f"{what} contains several tokens",
                    "import each file under its own name",
                )
            halves[place] = rows
    words = {vectors.word for vectors in files if vectors.word}
    if len(words) > 1:
        raise InputError(f"{what} are of two tokens: {', '.join(sorted(words))}", "import each file under its own name")
    missing = len(model.widths) - len(halves)
    if missing:
        raise _missing_half_error(model, what, next(iter(halves.values())).shape[1])
    parts = [halves[index] for index in range(len(model.widths))]
    if len({len(rows) for rows in parts}) > 1:
        raise InputError(
            f"{what} contains {' and '.join(str(len(rows)) for rows in parts)} vectors for the text encoders",
            "both halves of a token have the same number; get both again",
        )
    limit = model.tokenizer.model_max_length - 2
    if len(parts[0]) > limit:
        raise InputError(
            f"{what} contains {len(parts[0])} vectors: a prompt has room for {limit}",
            "import a token with fewer vectors",
        )
    return concat_encoders(parts)


def _match_encoder(model: BaseModel, vectors: TokenVectors, index: int | None, rows: Tensor) -> int:
    """Index of the text encoder that vectors belong to."""
    widths, width, family = model.widths, rows.shape[1], model.family
    if index is not None and index >= len(widths):
        raise IncompatibleError(
            f"{vectors.what} is not an embedding for {family.title}: it has vectors of two text encoders",
            "it is one of Stable Diffusion XL or 3: `--base sdxl`",
        )
    place = index if index is not None else widths.index(width) if width in widths else 0 if len(widths) == 1 else None
    if place is not None and widths[place] == width:
        return place
    mine = " and ".join(str(w) for w in (widths if place is None else (widths[place],)))
    other_family = next(
        (f for f in FAMILIES if f.title == FAMILY_BY_WIDTH.get(width, "").split(",")[0] and f != family), None
    )
    hint = (
        f"it looks like one of {FAMILY_BY_WIDTH[width]}: `--base {next(iter(other_family.hub))}`"
        if other_family
        else "use the base that it was made on"
    )
    raise IncompatibleError(f"a token's vectors in {vectors.what} have {width} numbers; this base's have {mine}", hint)


def _missing_half_error(model: BaseModel, what: str, width: int) -> IncompatibleError:
    """The error for vectors of only one of two text encoders."""
    keys = " and ".join(file_names.of_family(model.family).embedding_keys)
    return IncompatibleError(
        f"{what} is half of an embedding for {model.family.title}: it has vectors for one of two text encoders",
        f"give both files, as `learned_embeds.safetensors learned_embeds_2.safetensors`, or one with the keys {keys}",
    )
