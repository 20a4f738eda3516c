"""Class words: what people type, cleaned to what a base is told, the names made of it, and the words that a base knows."""

import contextlib
import difflib
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError, ObjtuneError, UsageError
from objtune_cli.store import refs

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.segmentation.from_hints import Target
    from objtune_cli.workflow.context import StageContext

CLASS_EXAMPLE = "for example `--class dog`"
_ARTICLES = re.compile(r"^(?:(?:an?|the|my|your|his|her|its|our|their|this|that|these|those)\s+)+(?=\S)", re.I)
_QUOTES = "\"'`´‘’‚“”„‹›«»「」『』 "
_ENDS = _QUOTES + ".,;:!?…¿¡。，、．；：！？؟،؛।\u200c\u200d"
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
"""Marks that copying text brings along and nobody sees: soft hyphens, directions, byte order marks. Joiners stay: they are part of words and emoji."""


def clean_class_word(text: str) -> str:
    """A class word without the article or possessive, quotes, closing punctuation and odd white space around it; case stays.

    A prompt puts its own article before the word: "a dog" would give "a photo of a a dog".

    Raises:
        UsageError: Nothing is left, or it has control characters or angle brackets.
    """
    with contextlib.suppress(UnicodeError):  # a command line read as ASCII, where the locale is C: its bytes are UTF-8
        text = text.encode("utf-8", "surrogateescape").decode()
    word = unicodedata.normalize("NFC", " ".join(_INVISIBLE.sub("", text).split()))
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in word):
        raise UsageError(f"the class word {word!r} has characters that cannot be printed", CLASS_EXAMPLE)
    if "<" in word or ">" in word:
        raise UsageError(
            f"the class word {word!r} has angle brackets",
            f"they are for names in prompts; a class is a plain word, {CLASS_EXAMPLE}",
        )
    several = [part.strip() for part in re.split("[,;|，、；،]", word.strip(_ENDS)) if part.strip()]
    if len(several) > 1:
        each = " ".join(f"--class {shlex.quote(part)}" for part in several)
        raise UsageError(
            f"the class {text.strip()!r} is a list",
            f"one word for one object: `{each}` for several, the most usual word for one",
        )
    word = _ARTICLES.sub("", word.strip(_QUOTES)).strip(_ENDS)
    if not word:
        problem = f"the class {text.strip()!r} has no word in it" if text.strip() else "the object has no class"
        raise UsageError(problem, f"give its class: {CLASS_EXAMPLE.removeprefix('for example ')}")
    return word


def pair_with_names(texts: Sequence[str], names: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Each class word, cleaned, with its object's name: the one that was given in its place, else one made of the word.

    Raises:
        UsageError: A class or name that cannot be used, or two objects with one name.
    """
    words = [clean_class_word(text) for text in texts]
    if len(names) > len(words):
        raise UsageError(f"{len(names)} names for {len(words)} classes", "give one `--name` for each `--class`")
    called = [refs.check_name(name) for name in names] + [refs.make_name(word) for word in words[len(names) :]]
    for i, name in enumerate(called):
        if name in called[:i]:
            first = words[called.index(name)]
            both = "" if first == words[i] else f": {first} and {words[i]} would both be {name}"
            raise UsageError(
                f"two objects would have the same name{both}", "tell them apart with `--name`, one for each `--class`"
            )
    return list(zip(words, called, strict=True))


def match_known(word: str, words: Sequence[str]) -> str | None:
    """The known word that this is in another case or in the plural; None if there is none."""
    spelled = {each.casefold(): each for each in words}
    return next((spelled[form] for form in _singular_forms(word.casefold()) if form in spelled), None)


def match_last_word(word: str, words: Sequence[str]) -> str | None:
    """The known word that a longer class ends with: mug of "red mug"."""
    last = word.rpartition(" ")[2]
    return match_known(last, words) if last != word else None


def _singular_forms(word: str) -> list[str]:
    """The word, then what it may be the plural of."""
    ends = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""), ("'s", ""), ("’s", ""))
    return [
        word,
        *(word.removesuffix(end) + one for end, one in ends if word.endswith(end) and len(word) > len(end) + 1),
    ]


def sort_by_likeness(word: str, words: Sequence[str]) -> list[str]:
    """The known words, those first that the class ends with, holds, or is spelled most like."""

    def distance(each: str) -> tuple[bool, bool, float]:
        alike = difflib.SequenceMatcher(None, each.casefold(), word.casefold()).ratio()
        return each != match_last_word(word, words), each.casefold() not in word.casefold().split(), -alike

    return sorted(words, key=distance)


def use_known_spelling(ctx: "StageContext", targets: list["Target"]) -> list["Target"]:
    """The targets with class words that the base knows, where it lists them: Dogs and "red dog" to dog."""
    words = _known_classes(ctx)
    respelled = []
    for target in targets:
        word = match_known(target.class_word, words) or match_last_word(target.class_word, words) or target.class_word
        if word.casefold() != target.class_word.casefold():
            ctx.note_once(f"the class {target.class_word!r} is read as {word!r}, which the base {ctx.base.id} knows")
        respelled.append(replace(target, class_word=word))
    return respelled


def check_known(ctx: "StageContext", target: "Target", chooses: bool) -> None:
    """Say that a base does not know a class; `chooses`: the class word alone says where the object is.

    Raises:
        InputError: It is to choose by a word that it does not know. With `--force` it does.
    """
    word, words = target.class_word, _known_classes(ctx)
    if not words or match_known(word, words):
        return
    if chooses and not ctx.force and not match_last_word(word, words):
        near = difflib.get_close_matches(word.casefold(), sort_by_likeness(word, words)[:1])
        other = f"`--class {near[0]}`" if near else "give one of these if it is one"
        raise InputError(
            _unknown_message(ctx, word),
            f"{other}, or show where it is: `--box x0,y0,x1,y1`, `--point x,y` or `--mask M.png`",
        )
    warn_unknown(ctx, word)


def warn_unknown(ctx: "StageContext", word: str) -> None:
    """Say, once in a command, that the base does not know a class."""
    if ctx.base.known_classes and not match_known(word, ctx.base.known_classes):
        ctx.note_once(_unknown_message(ctx, word))


def note_other_class(ctx: "StageContext", target: "Target") -> None:
    """Say where the newest mask of a target's name is of another class: `<quan>` in a prompt means the newest adapter."""
    versions = ctx.store.list_versions("mask", target.name)
    if not versions:
        return
    newest = ctx.store.read_record(refs.Ref("mask", target.name, versions[-1]))
    if newest.class_word.casefold() != target.class_word.casefold():
        ctx.note_once(
            f"{newest.ref} is of the class {newest.class_word!r}, this is {target.class_word!r}: `<{target.name}>` means what is newest; "
            "`--name` gives another name"
        )


def check_length(model: "BaseModel", words: Sequence[str], vectors: int) -> None:
    """Refuse classes that do not fit into the sentences of training: what is cut off there would never be learned.

    Args:
        words: Class words of the objects that are learned together. vectors: how many their tokens have besides.

    Raises:
        InputError: The longest sentence has more tokens than the base reads.
    """
    from objtune_cli.models.prompts import PROMPT, with_article

    sentence = PROMPT.format(" and ".join(with_article(word) for word in words))
    count = max(len(tokenizer(sentence).input_ids) for tokenizer in model.tokenizers) + vectors
    limit = min(int(tokenizer.model_max_length) for tokenizer in model.tokenizers)
    if count > limit:
        quoted = " and ".join(map(repr, words))
        more = ", or learn fewer objects together" if len(words) > 1 else ""
        raise InputError(
            f"a sentence with {quoted} has {count} tokens; the base reads {limit}",
            f"give a shorter word with `--class`{more}",
        )


def _unknown_message(ctx: "StageContext", word: str) -> str:
    return f"the base {ctx.base.id} does not know the class {word!r}; it knows {', '.join(sort_by_likeness(word, ctx.base.known_classes))}"


def _known_classes(ctx: "StageContext") -> Sequence[str]:
    """The words that the base names as known; none where it names none, or is not on this machine: a hint needs no base."""
    try:
        return ctx.base.known_classes
    except ObjtuneError:
        return ()
