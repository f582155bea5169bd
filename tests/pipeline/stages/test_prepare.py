"""Layers that the backend cannot hold are counted as float, and refused before calibration, all at once."""

from typing import Literal

import pytest
import torch
from torch import nn

from qplug import Config, InputError, ModelSource, Technique, quantize
from qplug.analysis.inspect import inspect
from qplug.cli.report.inspection import inspection_summary, inspection_tables
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.quantization.accounting import CONVENTIONS
from qplug.recipe.schema import Override
from qplug.testing.run import toy_recipe, toy_registry


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Clipped(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        Clipped(3, 4, 8, 8), nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), Doubled(16, 16), nn.Sequential(Doubled(16, 5))
    ).eval()


class Own(ModelSource):
    class Config(Config):
        source: Literal["own"] = "own"

    def load(self):
        return FloatModel.of(net(), "own", Preprocessing((3, 16, 16), (0.5,) * 3, (0.25,) * 3, "nearest", 1.0))


class Nothing(Technique):
    """A technique without hooks."""

    class Config(Config):
        use: Literal["toy.nothing"] = "toy.nothing"


def run(*overrides):
    registry = toy_registry(Nothing)
    recipe = toy_recipe(Nothing, registry=registry)
    given = recipe.quantize.model_copy(update={"overrides": [Override(**one) for one in overrides]})
    recipe = recipe.model_copy(update={"quantize": given})
    return quantize(net(), torch.randn(4, 3, 16, 16).split(2), recipe, registry=registry)


def test_a_run_refuses_every_such_layer_at_once_before_calibration(monkeypatch):
    monkeypatch.setattr("qplug.pipeline.run.calibrate", lambda *_: pytest.fail("calibrated"))
    with pytest.raises(InputError) as caught:
        run()
    error = caught.value
    assert error.where == "3 layers"
    assert error.what == (
        "brevitas cannot hold a Clipped, only the Conv2d that it derives from: 0; "
        "brevitas cannot hold a Doubled, only the Linear that it derives from: 4, 5.0"
    )
    assert "quantize.overrides: [{match: '0', skip: true}, {match: '4', skip: true}, {match: '5.0', skip: true}]" in (
        error.fix
    )


def test_with_the_overrides_of_the_error_the_run_goes_on_and_counts_them():
    result = run(*({"match": name, "skip": True} for name in ("0", "4", "5.0")))
    assert result.plan.float_macs == {"0": 3 * 64 * 4 * 4, "4": 256, "5.0": 80}
    assert {d.site.module for d in result.plan} == {"2"}


def test_half_a_layer_cannot_be_held_either():
    with pytest.raises(InputError, match="a Doubled") as caught:
        run({"match": "0", "skip": True}, {"match": "4", "skip": True}, {"match": "5.0.weight", "skip": True})
    assert caught.value.where == "5.0"


def test_inspect_promises_what_the_backend_holds():
    inspection = inspect(Own(Own.Config()))
    assert {site.module for site in inspection.sites} == {"2"}
    assert inspection.coverage == pytest.approx(256 / (3072 + 256 + 256 + 80))
    assert inspection.float_macs == {"0": 3072, "4": 256, "5.0": 80}
    reason = "brevitas cannot hold a Doubled, only the Linear that it derives from"
    assert inspection.float_reasons["4"] == reason
    assert inspection_summary(inspection, "own")["float_reasons"]["5.0"] == reason
    notes = [note for table in inspection_tables(inspection, "own", CONVENTIONS["full"]) for note in table.notes]
    assert f"stays in float: 4, 256 MACs: {reason}" in notes
