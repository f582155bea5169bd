"""Fixtures for every room."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as of a job in the background, whose children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several processes on the same cores wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A deadline would measure whatever else the machine does.
settings.register_profile("qplug", deadline=None)
settings.load_profile("qplug")


@pytest.fixture(scope="session")
def _thawed_at_the_end() -> Iterator[None]:
    yield
    gc.unfreeze()  # nanobind reports what no collection has freed


@pytest.fixture(scope="module", autouse=True)
def _frozen(_thawed_at_the_end: None) -> None:
    """A collection within a module looks at its own objects: at those of all loaded libraries it takes 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights, which not every machine has."""
    folder = Path(os.environ.get("QPLUG_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "weights").is_dir() or not (folder / "data").is_dir():
        pytest.skip(f"real images and weights are not on this machine (sought in {folder}; set QPLUG_SHARED)")
    return folder


@pytest.fixture(scope="session")
def small_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of random weights, in ``<kind>-<task>``, and random texts with labels and answers, in ``texts``."""
    pytest.importorskip("transformers", reason="pip install 'qplug[nlp]'")
    from text_toys import random_language

    return random_language(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def trained_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, trained on docstrings of installed libraries, which takes minutes."""
    pytest.importorskip("transformers", reason="pip install 'qplug[nlp]'")
    from text_toys import trained_language

    return trained_language(tmp_path_factory.mktemp("language"))
