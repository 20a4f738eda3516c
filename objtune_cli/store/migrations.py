"""Migrations of the record, oldest first: each turns a record of one schema into one of the next. Entries are only ever added."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from objtune_cli import renamed_settings
from objtune_cli.errors import DamagedError
from objtune_cli.store import safetensors_format

_DIGEST = re.compile(r"[0-9a-f]{64}")


def m002_digest(record: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 added a digest of the whole file; a file of schema 1 has none."""
    return {"digest": "", **record, "schema": 2}


def m003_setting_names(record: dict[str, Any]) -> dict[str, Any]:
    """Schema 3 renamed settings and gave yes-or-no settings true and false; older work has the identity of the same work today."""
    config = record.get("config")
    if isinstance(config, dict):
        record = {**record, "config": renamed_settings.of_record(str(record.get("kind")), config)}
    return {**record, "schema": 3}


MIGRATIONS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (m002_digest, m003_setting_names)
SCHEMA = 1 + len(MIGRATIONS)


def migrate(record: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """Convert a record to the newest schema; the file stays as it is.

    Raises:
        IncompatibleError: A newer schema. DamagedError: no schema, or no digest where there must be one.
    """
    safetensors_format.check_schema(record, SCHEMA, path)
    old = record["schema"]
    if old < 1 or (old >= 2 and not _DIGEST.fullmatch(str(record.get("digest")))):
        raise DamagedError(f"{path} is damaged: schema {old} without its digest", safetensors_format.RESTORE_HINT)
    for step in MIGRATIONS[old - 1 :]:
        record = step(record)
    return record
