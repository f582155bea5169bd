"""Tasks of plugins: found by name, used in a run, told apart by the scores of images."""

import math
from dataclasses import replace

import pytest
import torch
from qplug_plugins.baseline import MinMax
from run_toys import resolved, write_run
from task_toys import Place, PointNet, Points, point_images

import qplug
from qplug import InputError, PluginError
from qplug.analysis.compare import group
from qplug.cli import main
from qplug.hooks.registry import Plugin
from qplug.hooks.tasks import settle_task, task_named
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.pipeline.read_run import read_run
from qplug.testing.run import toy_recipe, toy_registry

GREY = Preprocessing((1, 8, 8), (0.0,), (1.0,), "bilinear", 1.0)


@pytest.fixture
def registry():
    """The installed plugins, and one whose ``qplug_tasks`` offers ``points`` and others that are wrong."""
    tasks = {"points": "task_toys:Points", "other": "task_toys:Points", "lost": "task_toys:Nobody"}
    mine = Plugin("toys", "qplug-toys", "1.0", "task_toys")
    own = toy_registry(MinMax)
    return replace(own, tasks=own.tasks | tasks, owners=own.owners | {f"task:{name}": mine for name in tasks})


def points_run(registry, bits=8, labels=None, **more):
    images, places = point_images(12)
    seen, _ = point_images(8, seed=1)
    recipe = toy_recipe(MinMax, registry=registry, bits=bits)
    evaluation = [(images * 0.98, places if labels is None else labels)]
    return qplug.quantize(PointNet(), [seen], recipe, evaluation=evaluation, registry=registry, **more)


def test_a_task_is_found_by_its_name(registry):
    assert isinstance(task_named("points", registry), Points)
    model = FloatModel.of(PointNet(), "net", GREY, task_name="points")
    assert settle_task(model, registry).task.name == "points"
    with pytest.raises(InputError, match="there is no task 'pionts'") as error:
        task_named("pionts", registry)
    assert "points" in error.value.fix


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other", "expected task_toys:Points to make the task 'other', got one named 'points'"),
        ("lost", "task 'lost' cannot be made: AttributeError"),
    ],
)
def test_a_plugin_whose_task_is_wrong_is_named(registry, name, message):
    with pytest.raises(PluginError, match=message) as error:
        task_named(name, registry)
    assert error.value.where == "toys (qplug-toys 1.0)"


def test_a_task_of_a_plugin_judges_a_run(registry):
    found = points_run(registry, task="points").metrics
    assert found["score"] == "nearness"
    assert found["float.nearness"] > 0.8
    assert found["quantized.nearness"] == pytest.approx(found["float.nearness"], abs=0.02)
    assert found["images.evaluation_labels"] == "place"
    assert "float.chance" not in found
    assert not any("broken" in warning for warning in found.get("warnings", ()))


def test_wrong_labels_of_a_task_are_refused_before_the_run(registry):
    with pytest.raises(InputError, match="the model predicts places, and a label is 3"):
        points_run(registry, task="points", labels=torch.full((12,), 3))
    with pytest.raises(InputError, match="the model predicts classes, and the labels are place"):
        points_run(registry)
    with pytest.raises(InputError, match=r"a place has x 2.0, outside of 0 … 1"):
        points_run(registry, task="points", labels=[Place(2.0, 0.0)] * 12)
    with pytest.raises(InputError, match="expected 12 labels for 12 inputs, received 11"):
        points_run(registry, task="points", labels=[Place(0.0, 0.0)] * 11)


def test_a_float_model_that_is_broken_is_told(registry):
    result = points_run(registry, task="points", labels=[Place(1.0, -9.0)] * 12)
    assert result.metrics["float.nearness"] == 0.0
    assert "the float model is as good as broken: nearness 0.00%" in " ".join(result.warnings)


def test_runs_are_told_apart_by_the_scores_of_images(tmp_path, capsys):
    draw = torch.Generator().manual_seed(0)
    good = torch.rand(40, generator=draw)
    named = {"score": "nearness", "score_title": "nearness", "float.nearness": 0.9, "quantized.nearness": 0.5}
    good[0] = math.nan  # an image without a score
    for name, scores in (("a", good), ("b", good - 0.1), ("c", good + 0.001 * torch.randn(40, generator=draw))):
        write_run(tmp_path / name, resolved(name), scores=scores, **named)
    (found,) = group([read_run(tmp_path / name) for name in "abc"])
    assert found.rows[0].against(found.rows[1]).p == pytest.approx(1 / 10_001)
    assert found.rows[0].against(found.rows[1]).mean == pytest.approx(0.1)
    assert found.rows[0].against(found.rows[2]).is_noise
    with pytest.raises(SystemExit, match="0"):
        main(["compare", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "float nearness 90.0 %" in shown
    assert "top-1" not in shown
