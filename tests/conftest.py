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
