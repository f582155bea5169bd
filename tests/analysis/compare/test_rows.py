"""Rows, groups of comparable rows, and significance letters."""

from __future__ import annotations

import numpy as np
import pytest
from run_toys import resolved, write_run

from qplug.analysis.compare import group
from qplug.analysis.compare.rows import distinct_names, flat
from qplug.pipeline.read_run import read_run


def grouped(tmp_path, *runs):
    """(recipe, right, more) each → the groups."""
    folders = [write_run(tmp_path / str(i), recipe, right, **more) for i, (recipe, right, more) in enumerate(runs)]
    return group([read_run(folder) for folder in folders])


def test_seeds_of_one_recipe_are_one_row(tmp_path):
    runs = [(resolved("a", seed), right, {}) for seed, right in ((2, 0.5), (0, 0.7), (1, 0.6))]
    (found,) = grouped(tmp_path, *runs)
    (row,) = found.rows
    assert (row.name, row.seeds) == ("a", [0, 1, 2])
    assert row.mean("quantized.top1") == pytest.approx(0.6)
    assert row.spread("quantized.top1") == pytest.approx(0.1)
    assert row.values("quantized.top1") == pytest.approx([0.7, 0.6, 0.5])
    assert found.float_score == 0.8


def test_a_repeated_run_counts_once(tmp_path):
    (found,) = grouped(tmp_path, (resolved("a"), 0.5, {}), (resolved("a"), 0.5, {}))
    assert [row.seeds for row in found.rows] == [[0]]


def test_other_models_and_other_images_are_other_groups(tmp_path):
    runs = [{}, {"model": "n"}, {"evaluation": "f"}, {"model": "n"}]
    found = grouped(tmp_path, *((resolved(name), 0.5, more) for name, more in zip("abcd", runs, strict=True)))
    assert [[row.name for row in g.rows] for g in found] == [["a"], ["b", "d"], ["c"]]


def test_rows_of_one_name_get_their_differences(tmp_path):
    one = resolved("a", techniques=[{"use": "toy.a", "strength": 0.5}])
    other = resolved("a", techniques=[{"use": "toy.a", "strength": 0.7}])
    wider = resolved("a", bits=6)
    (found,) = grouped(tmp_path, (one, 0.5, {}), (other, 0.5, {}), (wider, 0.5, {}))
    names = [row.name for row in found.rows]
    assert names == ["a (techniques.0.strength=0.5)", "a (techniques.0.strength=0.7)", "a"]


@pytest.mark.parametrize(
    ("one", "other", "word"),
    [
        ({"data": {"calibration": {"path": "a"}}}, {"data": {"calibration": {"path": "b"}}}, "data.calibration.path=a"),
        ({"lock": {"code": {"qplug": "0123456789"}}}, {"lock": {"code": {"qplug": "9876"}}}, "code.qplug=01234567"),
        ({"lock": {"packages": {"torch": "2.5"}}}, {"lock": {"packages": {"torch": "2.6"}}}, "packages.torch=2.5"),
        ({"lock": {"machine": {"device": "cpu"}}}, {"lock": {"machine": {"device": "cuda:1"}}}, "device=cpu"),
    ],
)
def test_seeds_of_other_settings_are_no_seeds_of_one_recipe(tmp_path, one, other, word):
    """A mean over them would be of nothing, and of two with one seed the first would be lost without a word."""

    def made(seed, values):
        return resolved("a", seed, **{"data": values.get("data", {})}), 0.5, {"lock": values.get("lock")}

    (found,) = grouped(tmp_path, made(0, one), made(1, other), made(0, other))
    assert [row.seeds for row in found.rows] == [[0], [0, 1]]
    assert found.rows[0].name == f"a ({word})"


def test_folders_of_evaluation_images_and_weights_do_not_separate_rows(tmp_path):
    def made(seed, root):
        model = {"source": "timm", "name": "deit_tiny", "checkpoint_path": f"{root}/deit.safetensors"}
        return resolved("a", seed, model=model, data={"evaluation": {"path": f"{root}/val"}}), 0.5, {}

    (found,) = grouped(tmp_path, made(0, "here"), made(1, "there"))
    assert [row.seeds for row in found.rows] == [[0, 1]]


def test_folders_of_calibration_images_do_not_separate_runs_of_one_recipe(tmp_path):
    class Asks:
        def dump(self):
            return resolved("a", data={"calibration": {"path": "new"}})

    folders = [
        write_run(tmp_path / place, resolved("a", seed, data={"calibration": {"path": place}}), 0.5)
        for seed, place in enumerate(("old", "new"))
    ]
    runs = [read_run(folder) for folder in folders]
    assert len(group(runs)[0].rows) == 2
    (row,) = group(runs, {run.lock.run_key: Asks() for run in runs})[0].rows
    assert (row.name, row.seeds) == ("a", [0, 1])


def test_other_preprocessing_is_another_group(tmp_path):
    """The same weights, cropped otherwise, or as another architecture's with other means: another float top-1."""

    def made(seed, name="deit_tiny", crop=0.9):
        model = {"source": "timm", "name": name, "preprocessing": {"crop_pct": crop}}
        return resolved("a", seed, model=model), 0.5, {}

    found = grouped(tmp_path, made(0), made(1, crop=1.0), made(2, name="vit_tiny"))
    assert [(g.model, [row.seeds for row in g.rows]) for g in found] == [
        ("deit_tiny (model.preprocessing.crop_pct=0.9)", [[0]]),
        ("deit_tiny (model.preprocessing.crop_pct=1.0)", [[1]]),
        ("vit_tiny", [[2]]),
    ]


def test_models_of_one_name_get_distinct_names(tmp_path):
    found = grouped(tmp_path, *((resolved("a"), 0.5, {"model": weights * 64}) for weights in "12"))
    assert [g.model for g in found] == ["deit_tiny (weights=11111111)", "deit_tiny (weights=22222222)"]


def test_long_lists_of_differences_are_cut_with_a_sign(tmp_path):
    one, other = ({"use": "toy.a", **dict.fromkeys("abcdef", value)} for value in (1, 2))
    (found,) = grouped(tmp_path, *((resolved("a", techniques=[step]), 0.5, {}) for step in (one, other)))
    assert found.rows[0].name == "a (techniques.0.a=1, techniques.0.b=1, techniques.0.c=1, techniques.0.d=1, …)"


def test_missing_values_are_left_out(tmp_path):
    (found,) = grouped(tmp_path, (resolved("a"), 0.5, {"quantized.logit_sqnr_db": None}))
    assert found.rows[0].mean("quantized.logit_sqnr_db") is None


def test_significance_letters(tmp_path):
    """b is worse than a by 3 images, which is noise, and c by 20, which is not."""
    right = np.arange(60) < 50
    worse, bad = right & (np.arange(60) >= 3), right & (np.arange(60) >= 20)
    (found,) = grouped(tmp_path, *((resolved(n), r, {}) for n, r in (("a", right), ("b", worse), ("c", bad))))
    a, b, c = found.rows
    assert a.against(b).p == pytest.approx(0.25)  # 2 · 2⁻³
    assert a.against(c).p == pytest.approx(2**-19)
    assert (a.against(b).is_noise, a.against(c).is_noise) == (True, False)
    assert found.ties == ["a", "a", ""]


def test_common_seeds_are_paired(tmp_path):
    draw = np.random.default_rng(0)
    seeds = {seed: draw.random(50) < 0.6 for seed in range(4)}
    ours = [(resolved("a", seed), seeds[seed], {}) for seed in (0, 1, 2)]
    theirs = [(resolved("b", seed), seeds[seed], {}) for seed in (1, 2, 3)]
    (found,) = grouped(tmp_path, *ours, *theirs)
    difference = found.rows[0].against(found.rows[1])
    assert (difference.mean, difference.p, difference.interval) == (0.0, 1.0, (0.0, 0.0))


def test_a_section_that_one_lacks_is_named_as_a_whole():
    qat = {"epochs": 3, "augment": {"hflip": 0.5}}
    facts = [flat({"seed": 0, "qat": value}) for value in (None, qat, {**qat, "epochs": 4})]
    assert distinct_names(["a"] * 2, facts[:2], [0] * 2) == ["a (qat=None)", "a (qat=given)"]
    assert distinct_names(["a"] * 2, facts[1:], [0] * 2) == ["a (qat.epochs=3)", "a (qat.epochs=4)"]


def test_runs_of_different_numbers_of_images_are_never_compared(tmp_path):
    """As where a damaged lock states the digest of other images."""
    found = grouped(tmp_path, (resolved("a"), 0.5, {"images": 40}), (resolved("b"), 0.5, {"images": 30}))
    assert [(group.images, len(group.rows), group.ties) for group in found] == [(40, 1, [""]), (30, 1, [""])]
