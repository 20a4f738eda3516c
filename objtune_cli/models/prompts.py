"""What a prompt says of objects, as text: names, the pieces that tokenizers know, class words."""

import re
from collections.abc import Mapping, Sequence

SCENES = ("on the beach", "in the snow", "at night", "in the desert")
"""The scenes of previews and of self-evaluation; a photo shows at most one of them."""

PROMPT = "a photo of {}"
"""The template that embeddings, priors and validation share."""


PLACEHOLDER = re.compile(r"<([a-z0-9][a-z0-9._-]*)(?:@([0-9]+))?>")
"""`<name>` or `<name@version>` in a prompt."""
PLACEHOLDER_TOKENS = re.compile(r"<\|([a-z0-9][a-z0-9._-]*):0\|>(?: <\|\1:[1-9][0-9]*\|>)*")
"""The tokens of one name, as `pieces` writes them."""

_DETERMINERS = r"(?:the|my|your|his|her|its|our|their|this|that|an?)"
_LEADS = r"(?:of|on|in|at|to|by|for|from|with|without|and|or|as|is|are|was|like|near|beside|behind|before|under|over|above|below|inside|wearing|holding|riding)"
_DESCRIBED = (
    rf"(?:\s+(?!{_LEADS}\b)[a-z-]+|\s+(?!{_LEADS}\b)[a-z-]+\s+(?!{_LEADS}\b|[a-z-]*(?:ing|(?<!ou)s)\b)[a-z-]+)?"
)
"""Nothing, "red", or "big red", but neither "photo of" nor "cat chasing" nor "boy hugs": words that lead to another thing."""


def placeholder_tokens(name: str, count: int) -> list[str]:
    """The tokens that a name of so many vectors is written as."""
    return [f"<|{name}:{i}|>" for i in range(count)]


def class_word_spans(prompt: str, name: str, classes: Mapping[str, str]) -> list[tuple[int, int]]:
    """Where a name's class word stands, first and last letter and one, in what `with_class_words` makes of `named` of the prompt."""
    ends = [
        len(with_class_words(restore_placeholders(prompt[: m.end()]), classes))
        for m in PLACEHOLDER_TOKENS.finditer(prompt)
        if m[1] == name
    ]
    return [(end - len(classes[name]), end) for end in ends]


def find_names(texts: Sequence[str]) -> list[str]:
    """The objects that prompts name whose names are written as tokens."""
    return list(dict.fromkeys(match[1] for text in texts for match in PLACEHOLDER_TOKENS.finditer(text)))


def restore_placeholders(prompt: str) -> str:
    """A prompt whose names are written as tokens, with the names again."""
    return PLACEHOLDER_TOKENS.sub(r"<\1>", prompt)


def objects_only_prompt(prompt: str, classes: Mapping[str, str]) -> str:
    """A prompt up to its first object, then its objects and nothing else, `a photo of a dog and a mug`; "" where it names none.

    One that is named twice is there twice, as in the whole prompt: it is no second thing.
    """
    found = [m for m in PLACEHOLDER.finditer(prompt) if m[1] in classes]
    return with_class_words(prompt[: found[0].start()] + " and ".join(m[0] for m in found), classes) if found else ""


def with_class_words(prompt: str, classes: Mapping[str, str]) -> str:
    """The prompt with each `<name>` as "a <class>"; an article or a possessive before it, or before a word or two that describe it, stays the only one."""
    for name, word in classes.items():
        literal = word.replace("\\", r"\\")
        said = rf"<{re.escape(name)}(?:@[0-9]+)?>"
        prompt = re.sub(rf"\b({_DETERMINERS}{_DESCRIBED})\s+{said}", rf"\g<1> {literal}", prompt, flags=re.I)
        prompt = re.sub(said, f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {literal}", prompt)
    return prompt


def with_article(word: str) -> str:
    """`word` with its indefinite article, for prompts."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
