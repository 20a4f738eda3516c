"""A CLIP tokenizer that makes every word of the world one token and takes any other text."""

from objtune_cli.toybox.captions import vocabulary


def build(tokens: int):
    """`CLIPTokenizer` with the byte alphabet and the merges of the world's words.

    Args:
        tokens: Longest prompt, start and end included.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    words = vocabulary()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=8_000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator([" ".join(words)] * 3, trainer)
    merges = [tuple(m) for m in _merges(learner)]
    vocab = [*alphabet, *(c + "</w>" for c in alphabet)]
    known = set(vocab)
    for left, right in merges:
        if left + right not in known:
            known.add(left + right)
            vocab.append(left + right)
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(vocab)}, merges=merges, model_max_length=tokens
    )
    split = [word for word in words if len(tokenizer(word).input_ids) != 3]
    if split:
        raise RuntimeError(f"words of more than one token: {split}")
    return tokenizer


def _merges(learner) -> list[list[str]]:
    import json

    merges = json.loads(learner.to_str())["model"]["merges"]
    return [m if isinstance(m, list) else m.split(" ") for m in merges]
