"""Masks that go from the screen Find to the screen Learn."""

from collections.abc import Sequence

from objtune_cli.errors import ObjtuneError
from objtune_cli.store import refs
from objtune_cli.ui.command_lines import clean_text
from objtune_cli.ui.hints import PhotoHints
from objtune_cli.ui.workspace import Workspace


def name_object(class_word: str, typed: str) -> str:
    """The typed name of an object, else the one that the command would make of its class."""
    try:
        return refs.check_name(typed) if typed else refs.make_name(class_word)
    except ObjtuneError:
        return typed or "object"


def save_masks(workspace: Workspace, photos: Sequence[PhotoHints]) -> list[tuple[str, str]]:
    """Write the masks that the quality gate takes; the query of the screen Learn that names them."""
    query: list[tuple[str, str]] = []
    for each in photos:
        mask = each.mask() if each.is_usable else None
        if mask is not None:
            class_word, name = clean_text(each.class_word) or "object", clean_text(each.name)
            path = workspace.save_mask(each.photo, name_object(class_word, name), mask)
            query += [("photo", each.photo), ("mask", path.name), ("class", class_word), ("name", name)]
    return query
