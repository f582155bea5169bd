"""Fixtures for every room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A deadline would measure whatever else the machine does.
settings.register_profile("qplug", deadline=None)
settings.load_profile("qplug")


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
