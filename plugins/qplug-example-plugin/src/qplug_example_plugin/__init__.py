"""The plugin's door: qplug imports this module through its entry point and asks for its techniques."""

from __future__ import annotations

import qplug
from qplug_example_plugin.three_sigma import ThreeSigma

qplug_hook_api = "1"
"""The version of qplug's hooks that this plugin was written for."""


@qplug.hookimpl
def qplug_techniques() -> list[type[qplug.Technique]]:
    """Every technique of this plugin."""
    return [ThreeSigma]
