"""A CLIP tokenizer in which every word of the toybox is one token and any other text is byte pairs.

The merges are learned here, because library trainers break ties at random, and a network trained on one set
of ids cannot read another.
"""

import itertools
from collections import Counter
from pathlib import Path

from objtune_cli.toybox.captions import vocabulary

Pair = tuple[str, str]


def merges(words: list[str]) -> list[Pair]:
    """Byte-pair merges that make each word one piece: the most frequent pair first, ties in alphabetical order."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    learned: list[Pair] = []
    while True:
        pairs = Counter(pair for pieces in split for pair in itertools.pairwise(pieces))
        if not pairs:
            return learned
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(best)
        split = [_merge_pair(pieces, best) for pieces in split]


def _merge_pair(pieces: list[str], pair: Pair) -> list[str]:
    done: list[str] = []
    for piece in pieces:
        if done and (done[-1], piece) == pair:
            done[-1] += piece
        else:
            done.append(piece)
    return done


def build(tokens: int):
    """`CLIPTokenizer` with the byte alphabet and the merges of the world's words.

    Args:
        tokens: Maximum number of tokens, start and end included.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learned = merges(vocabulary())
    pieces = [
        *alphabet,
        *(c + "</w>" for c in alphabet),
        *(a + b for a, b in learned),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=ids, merges=learned, model_max_length=tokens)  # type: ignore[arg-type]


def load_or_build(work: Path, tokens: int):
    """The work folder's tokenizer, built and saved on first use, so that every part has the same one."""
    from transformers import CLIPTokenizer

    folder = work / "tokenizer"
    if not folder.exists():
        build(tokens).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
