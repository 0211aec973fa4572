from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def level_of_the_log() -> Iterator[None]:
    """Commands and nodes let the package's loggers say more, which other tests of the process must not hear."""
    yield
    logging.getLogger("lidar_semseg_ros").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings beside the project; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the recordings of ../shared/data are not on this machine")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one core: small networks are faster so, above all where the cores are busy."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
