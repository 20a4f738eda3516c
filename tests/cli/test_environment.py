"""Variables that schedulers, shells and users leave: what nobody can use is dropped or named, and stops no command."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from objtune_cli.cli import environment, launcher
from objtune_cli.errors import ResourceError
from objtune_cli.interchange import hub_environment


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
    said = environment.drop_unusable(variables)
    assert variables == left
    assert words in " ".join(said) and bool(said) == bool(words)


def test_one_process_speaks_even_where_a_scheduler_left_its_number(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "no bases" not in cli("bases").out and cli("bases").out.startswith("toybox")
    assert environment.is_follower("train") and not environment.is_follower("list")
    monkeypatch.setenv(environment.STARTED_BY, "1")
    assert environment.is_follower("list")
    assert launcher.requested_processes(["train", "--num-processes", "2"]) == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launcher.requested_processes(["train", "--num-processes", "2"]) == 2


@pytest.mark.parametrize(("options", "shown"), [([], 0), (["default"], 1)])
def test_warnings_of_libraries_are_shown_on_request_alone(
    monkeypatch: pytest.MonkeyPatch, options: list[str], shown: int
) -> None:
    monkeypatch.setattr("sys.warnoptions", options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        environment.repair_environment()
        warnings.warn("a library's", UserWarning, stacklevel=1)
    assert len(seen) == shown


def test_warnings_that_are_errors_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        environment.repair_environment()
        warnings.warn("a library's", DeprecationWarning, stacklevel=1)


def test_python_without_docstrings_is_named(project: Path) -> None:
    line = [sys.executable, "-P", "-m", "objtune_cli"]
    done = subprocess.run(
        [*line, "init-embedding", "x"], env={**os.environ, "PYTHONOPTIMIZE": "2"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "") and "unset PYTHONOPTIMIZE" in done.stderr
    assert (
        subprocess.run([*line, "list"], env={**os.environ, "PYTHONOPTIMIZE": "2"}, capture_output=True).returncode == 0
    )


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "ALL_PROXY is a SOCKS proxy"), ({"HTTPS_PROXY": "socks4://x"}, "HTTPS_PROXY is 'socks4://x'"), ({"HTTPS_PROXY": "http://[::1"}, r"HTTPS_PROXY is 'http://\[::1'"),
        ({"https_proxy": "ftp://x"}, "https_proxy is"), ({"HTTP_PROXY": "http://"}, "HTTP_PROXY is"), ({"HTTPS_PROXY": "http://me:secret@host:port"}, r"HTTPS_PROXY is 'http://…@host:port'"),
        ({"HF_ENDPOINT": "localhost"}, "HF_ENDPOINT is 'localhost'"), ({"HF_ENDPOINT": ""}, "HF_ENDPOINT is ''"), ({"SSL_CERT_FILE": "/none.pem"}, "SSL_CERT_FILE is '/none.pem'"),
    ],
)  # fmt: skip
def test_what_no_connection_can_be_made_with_is_named(
    variables: dict[str, str], words: str, cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub_environment, "find_spec", lambda name: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = cli("fetch", "--base", "sd15")
    assert done.code == 7 and "Traceback" not in done.err and "secret" not in done.err
    with pytest.raises(ResourceError, match=words) as caught:
        hub_environment.check_environment()
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
        hub_environment.check_environment()
        assert hub_environment.suggest_variables().startswith("HTTPS_PROXY is set")
    monkeypatch.setenv("HTTPS_PROXY", "socks4://x")
    monkeypatch.setenv("NO_PROXY", "*")
    hub_environment.check_environment()
    assert hub_environment.suggest_variables() == ""


@pytest.mark.parametrize("device", ["mps", "cuda:99", "xpu", "vulkan", "meta", "gpu", "0", "cpu:abc", "", " "])
def test_a_device_that_is_not_here_is_one_short_line(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from objtune_cli.runtime.devices import pick_device

    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is here")
    with pytest.raises(ResourceError, match=f"device {device} is not available") as caught:
        pick_device(device)
    assert len(caught.value.message) < 120 and len(caught.value.hint) < 200
    assert caught.value.hint.startswith("here: cpu")
    assert pick_device(" CPU ").type == "cpu"


def test_a_gpu_that_a_variable_hides_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from objtune_cli.runtime import devices

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for value, words in (("GPU-garbage", "CUDA_VISIBLE_DEVICES is 'GPU-garbage'"), ("7", "'7'"), ("", ""), ("-1", "")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert words in devices.explain_no_gpu() and bool(words) == bool(devices.explain_no_gpu())
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert devices.explain_no_gpu() == ""


def test_a_cluster_that_left_all_of_its_variables_is_waited_for_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    from objtune_cli.runtime import distributed
    from objtune_cli.workflow.context import StageContext

    said: list[str] = []
    monkeypatch.setattr(StageContext, "note_once", lambda _self, text: said.append(text))
    monkeypatch.setattr(distributed, "join_process_group", lambda device: None)
    ctx = StageContext.__new__(StageContext)
    ctx.common = type("Common", (), {"device": "cpu"})()
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    ctx.team()
    assert said == ["waits at node1:29500 for 3 more processes (WORLD_SIZE is 4); unset WORLD_SIZE for one alone"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    ctx.team()
    for size in ("", "1", "x"):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert ctx.team() is None and not distributed.is_distributed()
    assert len(said) == 1
