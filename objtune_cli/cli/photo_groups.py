"""Groups the photos of a command line by the object that they show."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from objtune_cli.cli.object_options import PHOTO_PARAMETERS, PhotoRequest, parse_targets
from objtune_cli.cli.photo_options import is_folder
from objtune_cli.cli.runner import OptionGroups, require
from objtune_cli.workflow.photo_keys import HINTS

PhotoOptions = tuple[Path | str, Mapping[str, Any]]
"""A photo and the values of its options by the keys of `PHOTO_PARAMETERS`."""
CLASS_HINT = "give the class of its object behind it: `a.jpg --class dog b.jpg --class mug`"


def parse_requests(
    photos: list[Path | str], options: Mapping[str, Any], groups: OptionGroups, note: Callable[[str], None]
) -> list[list[PhotoRequest]]:
    """The photos of each adapter: several of one object, or one of one or more objects.

    A photo without a class belongs to the object of the next photo that has one. If the command line has one class
    alone, all photos are of that object. A folder stands for its photos.

    Args:
        options: Values of the whole command line. groups: Its arguments with the options behind them.

    Raises:
        UsageError: Options do not fit together. InputError: A folder without photos.
    """
    if len(photos) == 1:
        early, pairs = {}, _expand_folder(photos[0], options, note)
    else:
        early = {key: value for photo, own in groups if not photo for key, value in own.items() if value}
        behind = [own for photo, own in groups if photo]
        pairs = [pair for photo, own in zip(photos, behind, strict=True) for pair in _expand_folder(photo, own, note)]
    if len(pairs) == 1:
        photo, own = pairs[0]
        return [[PhotoRequest(photo, parse_targets(own), own.get("select"))]]
    classes = [word for own in (early, *(own for _, own in pairs)) for word in own.get("class_") or ()]
    if len(classes) == 1:
        _refuse_early(early, HINTS)
        return [_parse_group(pairs, early)]
    _refuse_early(early, tuple(PHOTO_PARAMETERS))
    requests = [_parse_group(group, {}) for group in _group_pairs(pairs)]
    _check_distinct_names(requests)
    return requests


def _expand_folder(photo: Path | str, options: Mapping[str, Any], note: Callable[[str], None]) -> list[PhotoOptions]:
    """A photo with its options; of a folder all photos, the last with the options of the folder."""
    if not isinstance(photo, Path) or not is_folder(photo):
        return [(photo, options)]
    from objtune_cli.segmentation import several_photos

    paths = several_photos.list_photos(photo, note)
    hints = [PHOTO_PARAMETERS[key] for key in HINTS if options.get(key)]
    require(
        len(paths) == 1 or not hints,
        f"{', '.join(hints)} behind {photo}, which has {len(paths)} photos",
        "a hint is of one photo: name the photos one by one, each followed by its hints",
    )
    shared = {"select": options.get("select")}
    return [*((path, shared) for path in paths[:-1]), (paths[-1], options)]


def _refuse_early(early: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Refuse options before the first photo that belong to one photo.

    Raises:
        UsageError: Names them.
    """
    names = [PHOTO_PARAMETERS[key] for key in keys if early.get(key)]
    require(
        not names,
        f"{', '.join(names)} before the first photo",
        "with several photos, the options of each photo follow it: `a.jpg --class dog b.jpg --class mug`",
    )


def _group_pairs(pairs: list[PhotoOptions]) -> list[list[PhotoOptions]]:
    """The photos by object: each group ends with a photo that has a class.

    Raises:
        UsageError: No photo with a class follows.
    """
    groups: list[list[PhotoOptions]] = [[]]
    for pair in pairs:
        groups[-1].append(pair)
        if pair[1].get("class_"):
            groups.append([])
    rest = groups.pop()
    require(not rest, f"{next((photo for photo, _ in rest), '')} has no class", CLASS_HINT)
    return groups


def _parse_group(pairs: list[PhotoOptions], early: Mapping[str, Any]) -> list[PhotoRequest]:
    """The requests of one adapter.

    Raises:
        UsageError: Several objects of several photos, or options that do not fit together.
    """
    every = (early, *(options for _, options in pairs))
    shared = {key: [value for options in every for value in options.get(key) or ()] for key in ("class_", "name")}
    require(
        len(pairs) == 1 or len(shared["class_"]) < 2,
        "several objects of several photos are not trained together",
        "name the photos again for each object: `a.jpg b.jpg --class dog a.jpg b.jpg --class mug`",
    )
    return [
        PhotoRequest(photo, parse_targets({**options, **shared}), options.get("select") or early.get("select"))
        for photo, options in pairs
    ]


def _check_distinct_names(groups: list[list[PhotoRequest]]) -> None:
    """Refuse two adapters with an object of the same name, before anything is looked at."""
    names = [target.name for group in groups for target in group[0].targets]
    twice = next((name for name in names if names.count(name) > 1), "")
    require(
        not twice,
        f"two photos would give an object the name {twice}",
        "tell the objects apart with `--name`; photos of one object share one class: `a.jpg b.jpg --class dog`",
    )
