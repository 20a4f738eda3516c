"""The tiny base: written once, opened anew for each test, since tests add to it."""

from pathlib import Path

import pytest
import torch

from objtune_cli.models import stack as stacks
from objtune_cli.models.stack import Stack
from tests import tiny


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("tiny"), clip=True)


@pytest.fixture
def stack(tiny_base: Path) -> Stack:
    return stacks.load(tiny_base, torch.device("cpu"), torch.float32)
