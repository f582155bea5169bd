"""Replacement of modules: at every path, and in time that grows with their number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qplug.models.surgery import Replacer, replace
from qplug.quantization.lowering import replace_planned


def test_a_shared_module_is_replaced_at_every_path() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()))
    new = nn.Identity()
    replace(model, shared, new)
    assert model[0] is model[1][0] is new


def test_what_a_replaced_module_holds_is_found_again() -> None:
    inner, outer = nn.ReLU(), nn.Sequential()
    outer.append(inner)
    model = nn.Sequential(outer)
    replacer = Replacer(model)
    replacer.replace(outer, nn.Sequential(nn.Identity(), outer))
    new = nn.GELU()
    replacer.replace(inner, new)
    assert model[0][1][0] is new


def test_lowering_searches_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for each module took 7 times as long for 3.2 times as many sites."""
    from types import SimpleNamespace

    searches = 0
    search = nn.Module.named_modules

    def counted(self: nn.Module, *args: object, **options: object) -> object:
        nonlocal searches
        searches += isinstance(self, nn.Sequential)
        return search(self, *args, **options)  # type: ignore[arg-type]

    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(50)))
    sites = [SimpleNamespace(module=str(index), role="weight") for index in range(50)]
    plan = [SimpleNamespace(site=site, quantizer=SimpleNamespace(buffers=list)) for site in sites]
    monkeypatch.setattr(nn.Module, "named_modules", counted)
    replace_planned(model, plan, {nn.Linear: lambda *_: nn.Identity()}, lambda *_: nn.Identity(), "a test")
    counts = searches
    assert all(isinstance(layer, nn.Identity) for layer in model)
    assert counts <= 3  # one of them for the parameters
    assert torch.equal(model(torch.ones(1, 1)), torch.ones(1, 1))
