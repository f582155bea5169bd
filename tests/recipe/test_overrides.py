"""``--set``: the values it can change, and problems that point at its own text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_toys import GOOD, registry

from qplug.core.errors import RecipeError
from qplug.recipe import load_recipe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("quantize.weights.bits=6", ("quantize", "weights", "bits"), 6),
        ("seed=7", ("seed",), 7),
        (" seed = 7", ("seed",), 7),
        ("techniques.1.percentile=99", ("techniques", 1, "percentile"), 99.0),
        ("techniques.toy.split.split=auto", ("techniques", 0, "split"), "auto"),
        ("techniques.toy.split.limits.=1", None, "expected key=value"),
        ("techniques.toy.split.limits=[1, 2]", ("techniques", 0, "limits"), [1, 2]),
        ("techniques.toy.ranges.mode=exact", ("techniques", 1, "mode"), "exact"),
        ("techniques.0={use: toy.ranges}", ("techniques", 0, "percentile"), 99.9),
        ("quantize.scope.softmax=true", ("quantize", "scope", "softmax"), True),
        ("quantize.overrides=[{match: 'post_*', bits: 8}]", ("quantize", "overrides", 0, "bits"), 8),
        ("model={source: path, path: x.y}", ("model", "path"), "x.y"),
        ("data.evaluation.images=", ("data", "evaluation", "images"), None),
        ("model.name=a=b", ("model", "name"), "a=b"),
    ],
)
def test_values(path: Path, override: str, keys: tuple[Any, ...] | None, value: Any) -> None:
    if keys is None:
        with pytest.raises(RecipeError, match=value):
            load_recipe(path, [override], registry())
        return
    here: Any = load_recipe(path, [override], registry()).dump()
    for key in keys:
        here = here[key]
    assert here == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nothing", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("quantize.weights.bits=99", "quantize.weights.bits: expected at most 16, received 99"),
        ("quantize.weights.bit=3", "unknown key 'bit'\n  → did you mean 'bits'?"),
        ("quantise.weights.bits=3", "unknown key 'quantise'\n  → did you mean 'quantize'?"),
        ("seed.deep=2", "'seed' is"),
        ("techniques.9.split=1", "'techniques' has 2 items: expected an index below 2, received 9"),
        ("techniques.toy.spli.split=1", "'techniques' has no technique 'toy.spli'\n  → did you mean 'toy.split'?"),
        ("techniques.zzz.a=1", "'techniques' has no technique 'zzz.a'\n  → the recipe has: toy.split, toy.ranges"),
        ("techniques.toy.split.limits.x=1", "techniques.0.limits: expected a list, received a mapping"),
        ("data.x=1", "unknown key 'x'"),
        ("quantize.overrides=*x", "not YAML: found undefined alias 'x'\n  → put quotes around"),
        ("model.name={", "this is not YAML"),
        ("model.name=!!python/name:os.system", "the tag"),
        ("seed=.nan", "expected a finite number"),
        ("techniques=[]", "techniques: expected at least 1 item, received an empty list"),
        ("techniques.toy.ranges.use=toy.split", "none of them makes quantizers"),
        ("backend=bravitas", "there is no backend 'bravitas'"),
    ],
)
def test_mistakes_point_at_the_text_and_at_no_line_of_the_file(path: Path, override: str, message: str) -> None:
    path.write_text(GOOD.replace("version: 1", "version: 1\nseed: 1"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override], registry())
    (problem,) = caught.value.problems
    assert message in str(problem)
    if "makes quantizers" not in message:  # that is about the whole list
        assert problem.where == f"--set {override}"
        assert problem.snippet == ""
        assert str(path) not in str(problem)


def test_a_technique_named_twice_is_set_by_its_place(path: Path) -> None:
    path.write_text(GOOD + "  - use: toy.split\n")
    with pytest.raises(RecipeError, match=r"more than once\n  → use its index: techniques.0 or techniques.2"):
        load_recipe(path, ["techniques.toy.split.split=9"], registry())
    assert load_recipe(path, ["techniques.2.split=9"], registry()).dump()["techniques"][2]["split"] == 9


def test_later_options_win_and_their_problems_follow_those_of_the_file(path: Path) -> None:
    assert load_recipe(path, ["seed=1", "seed=2"], registry()).seed == 2
    path.write_text(GOOD.replace("brevitas", "brev"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["seed=x", "no", "quantize.weights.bits=x"], registry())
    wheres = [problem.where for problem in caught.value.problems]
    assert wheres == [f"{path}:6:10", "--set seed=x", "--set no", "--set quantize.weights.bits=x"]


def test_an_option_adds_a_missing_key(path: Path) -> None:
    path.write_text(GOOD.replace("{bits: 4}", "{}"))
    assert load_recipe(path, ["quantize.weights.bits=5"], registry()).quantize.weights.bits == 5
