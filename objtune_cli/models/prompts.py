"""Objects in prompts as text: names, placeholder tokens and class words."""

import re
from collections.abc import Callable, Mapping, Sequence

SCENES = ("on the beach", "in the snow", "at night", "in the desert")
"""The scenes of previews and self-evaluation; a photo shows at most one of them."""

PROMPT = "a photo of {}"
"""The prompt template of embeddings, class priors and validation."""


PLACEHOLDER = re.compile(r"<([a-z0-9][a-z0-9._-]*)(?:@([0-9]+))?>")
"""`<name>` or `<name@version>` in a prompt."""
PLACEHOLDER_TOKENS = re.compile(r"<\|([a-z0-9][a-z0-9._-]*):0\|>(?: <\|\1:[1-9][0-9]*\|>)*")
"""The tokens of one name, as from `placeholder_tokens`."""

_DETERMINERS = r"(?:the|my|your|his|her|its|our|their|this|that|an?)"
_LEADS = r"(?:of|on|in|at|to|by|for|from|with|without|and|or|as|is|are|was|like|near|beside|behind|before|under|over|above|below|inside|wearing|holding|riding)"
_DESCRIBED = (
    rf"(?:\s+(?!{_LEADS}\b)[a-z-]+|\s+(?!{_LEADS}\b)[a-z-]+\s+(?!{_LEADS}\b|[a-z-]*(?:ing|(?<!ou)s)\b)[a-z-]+)?"
)
"""Up to two adjectives, such as "red" or "big red"; no words that lead to another noun ("photo of", "cat chasing")."""


def placeholder_tokens(name: str, count: int) -> list[str]:
    """The tokens of a name with `count` vectors."""
    return [f"<|{name}:{i}|>" for i in range(count)]


def class_word_spans(prompt: str, name: str, classes: Mapping[str, str]) -> list[tuple[int, int]]:
    """Character ranges [start, end) of a name's class word after `with_class_words(restore_placeholders(prompt), classes)`."""
    ends = [
        len(with_class_words(restore_placeholders(prompt[: m.end()]), classes))
        for m in PLACEHOLDER_TOKENS.finditer(prompt)
        if m[1] == name
    ]
    return [(end - len(classes[name]), end) for end in ends]


def find_names(texts: Sequence[str]) -> list[str]:
    """The names of the objects whose tokens are in expanded prompts."""
    return list(dict.fromkeys(match[1] for text in texts for match in PLACEHOLDER_TOKENS.finditer(text)))


def restore_placeholders(prompt: str) -> str:
    """Replace the tokens of each object in an expanded prompt by `<name>`."""
    return PLACEHOLDER_TOKENS.sub(r"<\1>", prompt)


def objects_only_prompt(prompt: str, classes: Mapping[str, str]) -> str:
    """A prompt up to its first object, then only its objects, as in `a photo of a dog and a mug`; "" without objects.

    An object that occurs twice in the prompt occurs twice in the result.
    """
    mentions = [m for m in PLACEHOLDER.finditer(prompt) if m[1] in classes]
    return (
        with_class_words(prompt[: mentions[0].start()] + " and ".join(m[0] for m in mentions), classes)
        if mentions
        else ""
    )


def with_class_words(prompt: str, classes: Mapping[str, str]) -> str:
    """Replace each `<name>` in a prompt by "a <class>".

    No article is added after an article or possessive, even with up to two adjectives in between.
    """
    for name, word in classes.items():
        for find in class_word_edits(name, word):
            for start, end, text in reversed(find(prompt)):
                prompt = prompt[:start] + text + prompt[end:]
    return prompt


def class_word_edits(name: str, word: str) -> tuple[Callable[[str], list[tuple[int, int, str]]], ...]:
    """The two steps that replace `<name>` by its class word: first behind a determiner, then the others with an article.

    Returns:
        Functions from a prompt to the ranges [start, end) that a step replaces, ascending, each with its new text.
    """
    pattern = rf"<{re.escape(name)}(?:@[0-9]+)?>"
    determined = re.compile(rf"\b({_DETERMINERS}{_DESCRIBED})\s+{pattern}", re.I)

    def behind_determiner(prompt: str) -> list[tuple[int, int, str]]:
        return [(match.end(1), match.end(), f" {word}") for match in determined.finditer(prompt)]

    def find_bare_words(prompt: str) -> list[tuple[int, int, str]]:
        return [(*match.span(), with_article(word)) for match in re.finditer(pattern, prompt)]

    return behind_determiner, find_bare_words


def with_article(word: str) -> str:
    """`word` with its indefinite article, for prompts."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
