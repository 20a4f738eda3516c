"""A lazy module is executed at its first read, once, by one thread; other imports stay as they are."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from objtune_cli.runtime import lazy_modules

SLOW = """
import time
time.sleep(0.2)
RUNS = globals().get("RUNS", 0) + 1
from lazy_part.inner import VALUE
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a lazy part."""
    (tmp_path / "lazy_part").mkdir()
    (tmp_path / "lazy_part" / "__init__.py").write_text(SLOW)
    (tmp_path / "lazy_part" / "inner.py").write_text("VALUE = 7")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(lazy_modules, "LAZY", ("lazy_part",))
    lazy_modules.install()
    yield "lazy_part"
    for name in ("lazy_part", "lazy_part.inner"):
        sys.modules.pop(name, None)


def test_all_threads_wait_for_one_execution(package: str) -> None:
    import lazy_part

    assert "VALUE" not in vars(lazy_part)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append((lazy_part.VALUE, lazy_part.RUNS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert found == [(7, 1)] * 4
    with pytest.raises(AttributeError, match="has no attribute 'missing'"):
        lazy_part.missing  # noqa: B018


def test_a_submodule_does_not_execute_its_lazy_package(package: str) -> None:
    from lazy_part.inner import VALUE

    assert VALUE == 7 and "RUNS" not in vars(sys.modules["lazy_part"])


def test_a_failed_execution_is_repeated(package: str, tmp_path: Path) -> None:
    (tmp_path / "lazy_part" / "__init__.py").write_text("raise ImportError('broken')")
    import lazy_part

    for _ in range(2):
        with pytest.raises(ImportError, match="broken"):
            lazy_part.VALUE  # noqa: B018


OPENING = """
import sys
import objtune_cli.models.loading
from transformers import CLIPTextModel
from diffusers import UNet2DConditionModel
print(*sorted(n for n in ("scipy.stats._stats_py", "torchvision.models.resnet", "torchvision.ops.roi_align") if n in sys.modules))
import torchvision, scipy.stats, torch
print(scipy.stats.norm.cdf(0.0), torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist())
print(torchvision.models.resnet18.__name__)
"""


def test_opening_a_base_executes_none_of_them_and_all_still_work() -> None:
    done = subprocess.run([sys.executable, "-c", OPENING], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["", "0.5 [0]", "resnet18"], done.stderr[-500:]
