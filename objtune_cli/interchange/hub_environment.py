"""Checks the environment variables for the connection to the hub: proxies, endpoint and certificates."""

import os
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from objtune_cli.errors import ResourceError

PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
SCHEMES = ("http", "https", "socks5", "socks5h")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def check_environment() -> None:
    """Refuse an endpoint, a proxy or certificates that the client cannot use.

    Raises:
        ResourceError: A variable is unusable; the message names it.
    """
    for name, value in _proxy_variables().items():
        scheme = _scheme(value) if "://" in value else "http"
        if scheme not in SCHEMES or not _host(value):
            raise ResourceError(
                f"{name} is {_hide_password(value)!r}, which is not a usable proxy",
                f"set {name} to http://, https:// or socks5:// with a host, or unset it",
            )
        if scheme.startswith("socks") and find_spec("socksio") is None:
            raise ResourceError(
                f"{name} is a SOCKS proxy, and the package for those is not installed",
                f"`pip install 'httpx[socks]'`, or unset {name}",
            )
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint is not None and (_scheme(endpoint) not in ("http", "https") or not _host(endpoint)):
        raise ResourceError(
            f"HF_ENDPOINT is {_hide_password(endpoint)!r}, which is not a URL",
            "set it to https:// with a host, or unset it",
        )
    for name in CERTIFICATES:
        if os.environ.get(name) and not Path(os.environ[name]).exists():
            raise ResourceError(
                f"{name} is {os.environ[name]!r}, which does not exist", f"set {name} to your certificates, or unset it"
            )
    if not any(os.environ.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")):
        try:
            Path.home()
        except RuntimeError:
            raise ResourceError("there is no home folder to keep the weights in", "set HF_HOME to a folder") from None


def suggest_variables() -> str:
    """Hint that names variables which redirect the connection; empty if there are none."""
    names = [*_proxy_variables(), *(["HF_ENDPOINT"] if os.environ.get("HF_ENDPOINT") else [])]
    return f"{' and '.join(names)} {'are' if names[1:] else 'is'} set, is that right? " if names else ""


def _proxy_variables() -> dict[str, str]:
    """Proxy variables and their values; empty if NO_PROXY excludes every host."""
    if "*" in {os.environ.get("NO_PROXY", "").strip(), os.environ.get("no_proxy", "").strip()}:
        return {}
    names = [each for name in PROXIES for each in (name, name.lower())]
    return {name: os.environ[name].strip() for name in names if os.environ.get(name, "").strip()}


def _scheme(address: str) -> str:
    return address.partition("://")[0].lower()


def _host(address: str) -> str:
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        return (parts.hostname or "") if parts.port != 0 else ""
    except ValueError:  # a port that is no number, half an IPv6 address
        return ""


def _hide_password(address: str) -> str:
    """Remove user name and password from an address."""
    before, at, host = address.rpartition("@")
    return f"{before.rpartition('//')[0]}//…@{host}" if at else address
