"""``lock.json`` names everything that a run depended on."""

from __future__ import annotations

import json

import torch
from recipe_toys import registry

from qplug.lock import lock


def test_lock() -> None:
    value = lock(seed=3, device="cpu", hashes={"checkpoint": "ab"}, registry=registry())
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    assert (value["format"], value["seed"], value["hashes"]) == (1, 3, {"checkpoint": "ab"})
    assert all(value["packages"].values())
    assert value["plugins"]["toy"] == {"distribution": "qplug-toy", "version": "1.2.3", "loaded": True}
    assert value["plugins"]["torn"]["loaded"] is False
    assert value["machine"]["torch_threads"] == torch.get_num_threads()
    assert value["machine"]["device"] == "cpu"
