"""The trained objects of a project, as the screens offer them."""

import contextlib
from dataclasses import dataclass

from objtune_cli.errors import DamagedError, MissingError
from objtune_cli.report import contents, lineage
from objtune_cli.report.contents import Scene
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import ARTIFACTS, NAME_PATTERN, Ref, parse_file_name
from objtune_cli.store.store import Store
from objtune_cli.workflow.context import StageContext
from objtune_cli.workflow.trained_objects import TrainedObjects


@dataclass(frozen=True, slots=True)
class AdapterVersions:
    """An adapter with all its versions; `record` is the newest one's."""

    record: Record
    versions: tuple[int, ...]


def list_placeholders(ctx: StageContext) -> list[str]:
    """Names of the objects that prompts may name with this base, sorted."""
    try:
        return sorted(TrainedObjects(ctx).of_base())
    except (DamagedError, MissingError):
        return sorted({name for each in list_adapters(ctx.store)[0] for name in each.record.objects})


def list_adapters(store: Store) -> tuple[list[AdapterVersions], list[str]]:
    """The adapters by name, and why others cannot be read."""
    adapters, problems = [], []
    for name in store.list_names("adapter"):
        versions = store.list_versions("adapter", name)
        try:
            adapters.append(AdapterVersions(store.read_record(Ref("adapter", name, versions[-1])), tuple(versions)))
        except (DamagedError, MissingError) as error:
            problems.append(error.message)
    return adapters, problems


def list_scenes(store: Store, limit: int) -> list[Ref]:
    """The newest scenes, by the time at which they were written."""
    found: list[tuple[float, Ref]] = []
    for folder in store.backend.list(f"{ARTIFACTS}scene/"):
        for entry in store.backend.list(folder.key):
            version, suffix = parse_file_name(entry.name) or (0, "")
            if suffix == "safetensors" and NAME_PATTERN.fullmatch(folder.name):
                found.append((entry.modified, Ref("scene", folder.name, version)))
    return [ref for _, ref in sorted(found, key=lambda each: (-each[0], str(each[1])))[:limit]]


def list_scenes_of(store: Store, adapter: Ref, limit: int) -> list[Scene]:
    """The scenes with an adapter among the newest of all scenes; those that cannot be read are left out.

    Args:
        limit: How many of the newest are looked through.
    """
    scenes = []
    for ref in list_scenes(store, limit):
        with contextlib.suppress(DamagedError, MissingError):
            scene = contents.read_scene(store, ref)
            if adapter in lineage.adapters_of(scene.record):
                scenes.append(scene)
    return scenes
