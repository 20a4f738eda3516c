"""Class words: cleaning of user input, names of objects, and the words that a base knows."""

import contextlib
import difflib
import functools
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError, ObjtuneError, UsageError
from objtune_cli.store import refs
from objtune_cli.workflow import class_synonyms

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.segmentation.from_hints import Target
    from objtune_cli.workflow.context import StageContext

CLASS_EXAMPLE = "for example `--class dog`"
_ARTICLES = re.compile(r"^(?:(?:an?|the|my|your|his|her|its|our|their|this|that|these|those)\s+)+(?=\S)", re.I)
_QUOTES = "\"'`´‘’‚“”„‹›«»「」『』 "
_ENDS = _QUOTES + ".,;:!?…¿¡。，、．；：！？؟،؛।\u200c\u200d"
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
"""Invisible characters from copied text: soft hyphens, direction marks, byte order marks. Joiners stay, because words and emoji need them."""


@functools.lru_cache(maxsize=4096)
def clean_class_word(text: str) -> str:
    """Remove article or possessive, quotes, closing punctuation and extra white space from a class word; case stays.

    Prompts put an article before the word, so that "a dog" would give "a photo of a a dog".

    Raises:
        UsageError: Nothing is left, or it has control characters or angle brackets.
    """
    with contextlib.suppress(
        UnicodeError
    ):  # with the locale C, Python decodes the command line as ASCII; the bytes are UTF-8
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
    """Clean each class word and pair it with its object's name: that at the same position of `names`, else one made from the word.

    Raises:
        UsageError: A class or name is invalid, or two objects have one name.
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
    """The known word that `word` equals, ignoring case and plural; None if there is none."""
    spelled = {each.casefold(): each for each in words}
    return next((spelled[form] for form in _singular_forms(word.casefold()) if form in spelled), None)


def match_last_word(word: str, words: Sequence[str]) -> str | None:
    """The known word at the end of a class of several words, such as mug for "red mug"; None if there is none."""
    last = word.rpartition(" ")[2]
    return match_known(last, words) if last != word else None


def _singular_forms(word: str) -> list[str]:
    """The word, then its possible singulars."""
    ends = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""), ("'s", ""), ("’s", ""))
    return [
        word,
        *(word.removesuffix(end) + one for end, one in ends if word.endswith(end) and len(word) > len(end) + 1),
    ]


def find_synonym(word: str, words: Sequence[str]) -> str | None:
    """The known word that a class, or the last of its several words, is another word for; None if there is none."""
    whole = word.casefold()
    return class_synonyms.find_class([*_singular_forms(whole), *_singular_forms(whole.rpartition(" ")[2])], words)


def sort_by_likeness(word: str, words: Sequence[str]) -> list[str]:
    """The known words by likeness: those at the end of the class, those in it, those of the same meaning, then by spelling."""
    synonym = find_synonym(word, words)

    def distance(each: str) -> tuple[bool, bool, bool, float]:
        alike = difflib.SequenceMatcher(None, each.casefold(), word.casefold()).ratio()
        is_inside = each.casefold() in word.casefold().split()
        return each != match_last_word(word, words), not is_inside, each != synonym, -alike

    return sorted(words, key=distance)


def name_adapter(objects: Iterable[str]) -> str:
    """The name of the adapter of some objects: their names, joined and cut to 64 characters."""
    return "-".join(objects)[:64].rstrip("-.")


def use_known_spelling(ctx: "StageContext", targets: list["Target"]) -> list["Target"]:
    """Replace class words by those that the base lists: Dogs and "red dog" become dog."""
    words = _known_classes(ctx)
    respelled = []
    for target in targets:
        word = match_known(target.class_word, words) or match_last_word(target.class_word, words) or target.class_word
        if word.casefold() != target.class_word.casefold():
            ctx.note_once(f"the class {target.class_word!r} is read as {word!r}, which the base {ctx.base.id} knows")
        respelled.append(replace(target, class_word=word))
    return respelled


def check_known(ctx: "StageContext", target: "Target", chooses: bool) -> None:
    """Note that a base does not know a class.

    Args:
        chooses: Whether only the class word locates the object; then an unknown class is an error without `--force`.

    Raises:
        InputError: The class is unknown and only it locates the object.
    """
    word, words = target.class_word, _known_classes(ctx)
    if not words or match_known(word, words):
        return
    if chooses and not ctx.force and not match_last_word(word, words):
        nearest = sort_by_likeness(word, words)[0]
        is_near = nearest == find_synonym(word, words) or difflib.get_close_matches(word.casefold(), [nearest])
        other = f"`--class {nearest}`" if is_near else "give one of these if it is one"
        raise InputError(
            _unknown_message(ctx, word),
            f"{other}, or show where it is: `--box x0,y0,x1,y1`, `--point x,y` or `--mask M.png`",
        )
    warn_unknown(ctx, word)


def warn_unknown(ctx: "StageContext", word: str) -> None:
    """Note, once per command, that the base does not know a class."""
    if ctx.base.known_classes and not match_known(word, ctx.base.known_classes):
        ctx.note_once(_unknown_message(ctx, word))


def note_other_class(ctx: "StageContext", target: "Target") -> None:
    """Note that the newest mask of a target's name has another class, because `<name>` in prompts means the newest adapter."""
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
    """Refuse class words that are too long for the training prompts, whose cut-off ends would never be learned.

    Args:
        words: Class words of the objects that are trained together. vectors: Number of further token vectors.

    Raises:
        InputError: The longest prompt has more tokens than the base reads.
    """
    from objtune_cli.models.prompts import PROMPT, with_article

    sentence = PROMPT.format(" and ".join(with_article(word) for word in words))
    count = max(len(tokenizer(sentence).input_ids) for tokenizer in model.tokenizers) + vectors
    limit = min(int(tokenizer.model_max_length) for tokenizer in model.tokenizers)
    if count > limit:
        quoted = " and ".join(map(repr, words))
        more = ", or learn fewer objects together" if len(words) > 1 else ""
        raise InputError(
            f"a training prompt with {quoted} has {count} tokens; the base reads {limit}",
            f"use a shorter word with `--class`{more}",
        )


def _unknown_message(ctx: "StageContext", word: str) -> str:
    return f"the base {ctx.base.id} does not know the class {word!r}; it knows {', '.join(sort_by_likeness(word, ctx.base.known_classes))}"


def _known_classes(ctx: "StageContext") -> Sequence[str]:
    """The classes that the base lists; empty if it lists none or is not on this machine, because hints need no base."""
    try:
        return ctx.base.known_classes
    except ObjtuneError:
        return ()
