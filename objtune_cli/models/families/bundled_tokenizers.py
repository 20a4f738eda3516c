"""The tokenizers of CLIP and T5 from tables in this package: CLIP's merges from OpenCLIP (MIT), T5's pieces (Apache 2.0)."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from objtune_cli.models.families.family import Family
from objtune_cli.models.families.sd2 import SD2

MERGES = Path(__file__).parent / "words" / "merges.txt.gz"
PIECES = Path(__file__).parent / "words" / "t5.json.gz"


def clip_tokenizer(pad: str) -> Any:
    """CLIP's tokenizer: 256 bytes, 256 bytes that end a word, 48 894 merges, start and end token."""
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


def pad_tokens(family: Family) -> tuple[str, ...]:
    """The padding token of each text encoder."""
    return (("!",) if family is SD2 else ("<|endoftext|>", "!"))[: len(family.encoders)]


def t5_tokenizer() -> Any:
    """T5's tokenizer: 32 000 pieces with scores, 100 sentinels, and its character normalisation."""
    from transformers import T5TokenizerFast  # type: ignore[attr-defined]

    table = json.loads(gzip.decompress(PIECES.read_bytes()))
    charsmap = base64.b64decode(table["charsmap"])
    return T5TokenizerFast(
        vocab=[tuple(piece) for piece in table["vocab"]], _spm_precompiled_charsmap=charsmap, model_max_length=512
    )
