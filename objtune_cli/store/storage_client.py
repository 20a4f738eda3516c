"""The client of object storage, obstore: addresses, settings, and its errors in a few words without credentials."""

import os
import re
import threading
from datetime import timedelta
from typing import Any

from objtune_cli.errors import ResourceError, UsageError

TIMEOUT = 120.0
"""Limit of one request, seconds."""
RETRY_SECONDS, MAX_RETRIES = 60.0, 6
"""Bounds of the client's own repetitions of a request."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 15.0
"""Bounds of the random pause before a repetition, seconds; it doubles with each."""
_memory: dict[str, Any] = {}
_lock = threading.Lock()


def clean_address(address: str) -> str:
    """An address with its scheme in lower case and single slashes.

    Raises:
        UsageError: It names no bucket, or holds more than a bucket and a prefix, such as a password.
    """
    scheme, _, rest = address.partition("://")
    if "@" in rest or "?" in rest or "#" in rest:
        raise UsageError(
            f"the address of a project is {scheme}://bucket/prefix alone",
            "credentials come from the environment, for example AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    parts = [part for part in rest.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        raise UsageError(f"{address} names no bucket", f"for example {scheme}://bucket/prefix")
    return f"{scheme.lower()}://{'/'.join(parts)}"


def open_store(address: str) -> Any:
    """The client of an address.

    Raises:
        ResourceError: obstore is not installed, or the environment lacks a setting that it needs.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import MemoryStore, from_url
    except ImportError:
        raise ResourceError(
            f"{address}: the package obstore is not installed", "pip install 'objtune[cloud]'"
        ) from None
    if address.startswith("memory:"):
        with _lock:
            return _memory.setdefault(address, MemoryStore())
    options: Any = {"timeout": timedelta(seconds=TIMEOUT), "connect_timeout": timedelta(seconds=10)}
    if _allows_http():
        options["allow_http"] = True
    retry: Any = {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {
            "init_backoff": timedelta(seconds=FIRST_PAUSE),
            "max_backoff": timedelta(seconds=LONGEST_PAUSE),
            "base": 2,
        },
    }
    try:
        return from_url(address, client_options=options, retry_config=retry)
    except (BaseError, ValueError) as error:
        reason = str(error).partition("\n")[0].partition("error: ")[2] or "the environment has no valid settings"
        raise ResourceError(
            f"{address} cannot be opened: {reason}", "set the variables of the storage, for example AWS_REGION"
        ) from None


def _allows_http() -> bool:
    """Whether the environment names an endpoint without TLS, as servers on one's own machine have."""
    endpoints = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    return any(os.environ.get(name, "").startswith("http://") for name in endpoints)


def read_code(error: BaseException) -> str:
    """The code or status that a storage answered with; no other part of its answer."""
    text = str(error).partition("Debug source")[0]
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"status code: (\d{3} [A-Za-z ]+)", text)
    if code or status:
        return (code or status)[1]  # type: ignore[index]
    if "error sending request" in text or "timed out" in text or "timeout" in text:
        return "the storage does not answer"
    return "no valid credentials" if "credential" in text.lower() else type(error).__name__


def is_refused(error: BaseException) -> bool:
    """Whether a storage refuses a request whatever lies there, so that asking again is of no use."""
    code = read_code(error)
    refused = ("NoSuchBucket", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "no valid credentials")
    return code in refused or code[:3] in ("401", "403") or type(error).__name__.startswith(("Permission", "Unauth"))
