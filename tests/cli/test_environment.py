"""Variables that schedulers, shells and users leave: what nobody can use is dropped or named, and stops no command."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from objtune_cli.cli import environment, processes
from objtune_cli.errors import ResourceError
from objtune_cli.stages import connection


@pytest.mark.parametrize(
    ("variables", "left", "words"),
    [
        ({"OMP_NUM_THREADS": "0"}, {}, "OMP_NUM_THREADS is '0'"),
        ({"OMP_NUM_THREADS": "four", "MKL_NUM_THREADS": "-1"}, {}, "MKL_NUM_THREADS is '-1'"),
        ({"OMP_NUM_THREADS": " 4,2 "}, {"OMP_NUM_THREADS": " 4,2 "}, ""),
        ({"OMP_NUM_THREADS": ""}, {"OMP_NUM_THREADS": ""}, ""),
        ({"COLUMNS": "0", "LINES": "tall"}, {}, ""),
        ({"COLUMNS": "80"}, {"COLUMNS": "80"}, ""),
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "soon"}, {}, "not a number of seconds"),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "x"}, {}, "RANK is not set"),
        ({"WORLD_SIZE": "four", "RANK": "0"}, {}, "not a number of processes"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, {}, "RANK is '2'"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a"}, {"MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "p"}, {"MASTER_ADDR": "a", "MASTER_PORT": "p"}, "MASTER_PORT is 'p'"),
        ({"WORLD_SIZE": "1", "RANK": "x"}, {"WORLD_SIZE": "1", "RANK": "x"}, ""),
        ({n: "1" for n in ("RANK", "MASTER_ADDR", "MASTER_PORT")} | {"WORLD_SIZE": "2"}, {n: "1" for n in ("RANK", "MASTER_ADDR", "MASTER_PORT")} | {"WORLD_SIZE": "2"}, ""),
    ],
)  # fmt: skip
def test_what_nobody_can_use_is_dropped(variables: dict[str, str], left: dict[str, str], words: str) -> None:
    said = environment.ignore(variables)
    assert variables == left
    assert words in " ".join(said) and bool(said) == bool(words)


def test_one_process_speaks_even_where_a_scheduler_left_its_number(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "no bases" not in cli("bases").out and cli("bases").out.startswith("toybox")
    assert environment.follows("train") and not environment.follows("list")
    monkeypatch.setenv(environment.STARTED_BY, "1")
    assert environment.follows("list")
    assert processes.asked(["train", "--num-processes", "2"]) == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert processes.asked(["train", "--num-processes", "2"]) == 2


def test_warnings_that_are_errors_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        environment.settle()
        warnings.warn("a library's", DeprecationWarning, stacklevel=1)


def test_python_without_docstrings_is_named(project: Path) -> None:
    line = [sys.executable, "-P", "-m", "objtune_cli"]
    done = subprocess.run([*line, "init-embedding", "x"], env={**os.environ, "PYTHONOPTIMIZE": "2"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and "unset PYTHONOPTIMIZE" in done.stderr
    assert subprocess.run([*line, "list"], env={**os.environ, "PYTHONOPTIMIZE": "2"}, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "ALL_PROXY is a SOCKS proxy"), ({"HTTPS_PROXY": "socks4://x"}, "HTTPS_PROXY is 'socks4://x'"),
        ({"https_proxy": "ftp://x"}, "https_proxy is"), ({"HTTP_PROXY": "http://"}, "HTTP_PROXY is"), ({"HTTPS_PROXY": "http://me:secret@host:port"}, r"HTTPS_PROXY is 'http://…@host:port'"),
        ({"HF_ENDPOINT": "localhost"}, "HF_ENDPOINT is 'localhost'"), ({"HF_ENDPOINT": ""}, "HF_ENDPOINT is ''"), ({"SSL_CERT_FILE": "/none.pem"}, "SSL_CERT_FILE is '/none.pem'"),
    ],
)  # fmt: skip
def test_what_no_connection_can_be_made_with_is_named(variables: dict[str, str], words: str, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = cli("fetch", "--base", "sd15")
    assert done.code == 7 and "Traceback" not in done.err and "secret" not in done.err
    with pytest.raises(ResourceError, match=words) as caught:
        connection.check()
    assert "unset" in caught.value.hint


def test_no_home_folder(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no name: nothing is fetched into a folder called ~, and `~` is refused."""

    def nobody(self: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    monkeypatch.setattr(Path, "home", lambda: nobody(None))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_args, **_named: nobody(None))
    assert "not here" in cli("bases").out
    done = cli("fetch", "--base", "sd15")
    assert done.code == 7 and "set HF_HOME" in done.err
    done = cli("list", "--project=~/x")
    assert done.code == 2 and "no home folder for ~" in done.err


def test_a_proxy_that_can_be_used_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("proxy:3128", "http://me:pw@proxy:3128", "https://proxy", "http://[::1]:8080"):
        monkeypatch.setenv("HTTPS_PROXY", value)
        connection.check()
        assert connection.advice().startswith("HTTPS_PROXY is set")
    monkeypatch.setenv("HTTPS_PROXY", "socks4://x")
    monkeypatch.setenv("NO_PROXY", "*")
    connection.check()
    assert connection.advice() == ""


@pytest.mark.parametrize("device", ["mps", "cuda:99", "xpu", "vulkan", "meta", "gpu", "0", "cpu:abc"])
def test_a_device_that_is_not_here_is_one_short_line(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from objtune_cli.models.stack import pick_device

    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is here")
    with pytest.raises(ResourceError, match=f"device {device} is not available") as caught:
        pick_device(device)
    assert len(caught.value.message) < 120 and len(caught.value.hint) < 200
    assert caught.value.hint.startswith("here: cpu")
    assert pick_device(" CPU ").type == "cpu"
