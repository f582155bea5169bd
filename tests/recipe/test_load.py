"""Wrong recipe files: one clear problem for each mistake, at its line and column, and all at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from recipe_toys import GOOD, registry

from qplug.core.errors import InputError, RecipeError
from qplug.recipe import Recipe, load_recipe
from qplug.recipe.report import SCREEN_LINES, render_problems

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(old: str = "", new: str = "", text: str = GOOD) -> Path:
        assert old in text
        path = tmp_path / "recipe.yaml"
        path.write_text(text.replace(old, new, 1) if old else text, encoding="utf-8")
        return path

    return write


def load(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, overrides, registry())


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(path, *overrides)
    assert caught.value.exit_code == 2
    shown = render_problems(caught.value.problems)
    assert sum(1 + str(part).count("\n") for part in shown) <= SCREEN_LINES
    return [str(problem).replace(f"{path}:", "") for problem in caught.value.problems]


def test_a_good_recipe_is_resolved_with_every_default(write: Write) -> None:
    recipe = load(write())
    assert recipe.seed == 0
    assert recipe.dump()["quantize"]["weights"] == {
        "bits": 4,
        "granularity": "per_channel",
        "symmetric": True,
        "number_format": "int",
    }
    assert recipe.dump()["quantize"]["activations"]["zero_point"] == "integer"
    assert recipe.dump()["techniques"][1] == {"use": "toy.ranges", "percentile": 99.9, "mode": "fast"}
    assert type(recipe.techniques[0]).__qualname__ == "Split.Config"


WRONG = [
    pytest.param(
        "bits: 4}", "bitz: 4}", ["8:13: quantize.weights.bitz: unknown key 'bitz'", "'bits'?"], id="unknown key"
    ),
    pytest.param(
        "  split: 3", "  spilt: 3", ["12:5: techniques.0.spilt: unknown key", "'split'?"], id="technique's key"
    ),
    pytest.param("bits: 4}", "bits: four}", ["8:19: quantize.weights.bits: expected a whole number, received 'four'"]),
    pytest.param("bits: 4}", "bits: '4'}", ["8:19: quantize.weights.bits: expected a whole number, received '4'"]),
    pytest.param("bits: 4}", "bits: 4.5}", ["expected a whole number, received 4.5"]),
    pytest.param("bits: 4}", "bits: true}", ["expected a whole number, received true"]),
    pytest.param("bits: 4}", "bits: 17}", ["8:19: quantize.weights.bits: expected at most 16, received 17"]),
    pytest.param("bits: 4}", "bits: 1}", ["8:19: quantize.weights.bits: expected at least 2, received 1"]),
    pytest.param("bits: 4}", "bits: 4, zero_point: float}", ["quantize.weights.zero_point: unknown key"]),
    pytest.param(
        "per_tensor",
        "per_tensor, zero_point: float",
        ["quantize.activations: 'zero_point: float' needs 'symmetric: false'"],
        id="a float zero point at 0",
    ),
    pytest.param("bits: 4}", "}", ["8:12: quantize.weights: missing the key 'bits'"]),
    pytest.param("per_tensor", "per_tenor", ["'per_channel' or 'per_head', received 'per_tenor'", "'per_tensor'?"]),
    pytest.param(
        "split: 3", "split: 1.5", ["12:12: techniques.0.split: expected a whole number or 'auto', received 1.5"]
    ),
    pytest.param("split: 3", "limits: [1, x]", ["12:17: techniques.0.limits.1: expected a whole number, received 'x'"]),
    pytest.param("split: 3", "split: .nan", ["12:12: expected a finite number, received .nan"]),
    pytest.param("ranges", "ranges\n    percentile: .inf", ["14:17: expected a finite number, received .inf"]),
    pytest.param("ranges", "ranges\n    percentile: 1e999", ["14:17: expected a finite number, received 1e999"]),
    pytest.param(
        "toy.ranges", "toy.rangs", ["13:10: techniques.1.use: there is no technique 'toy.rangs'", "'toy.ranges'?"]
    ),
    pytest.param("toy.ranges", "ranges", ["there is no technique 'ranges'", "'toy.ranges'?"], id="without its plugin"),
    pytest.param("toy.ranges", "none.such", ["there is no technique 'none.such'", "'qplug techniques' lists"]),
    pytest.param("toy.ranges", "torn.clip", ["torn (qplug-torn 0.4), which failed to load", "No module named 'scipy'"]),
    pytest.param("use: toy.ranges", "percentile: 99", ["13:5: techniques.1: missing the key 'use'"], id="no use"),
    pytest.param("use: toy.ranges", "use: 3", ["techniques.1.use: expected text, received 3"]),
    pytest.param(
        "- use: toy.ranges", "- toy.ranges", ["13:5: techniques.1: expected a mapping, received 'toy.ranges'"]
    ),
    pytest.param("named", "nmed", ["2:17: model.source: there is no model source 'nmed'", "'named'?"]),
    pytest.param("named", "zzz", ["there is no model source 'zzz'", "not loaded: torn (qplug-torn 0.4)"]),
    pytest.param("source: images", "source: image", ["4:25: data.calibration.source: there is no data source 'image'"]),
    pytest.param(", name: vit", "", ["2:8: model: missing the key 'name'"]),
    pytest.param(
        "images: 8", "images: 0", ["data.calibration.images: expected at least 1, received 0"], id="no images"
    ),
    pytest.param("brevitas", "brevits", ["6:10: backend: there is no backend 'brevits'", "'brevitas'?"]),
    pytest.param(
        "  - use: toy.ranges\n", "", ["10:1: techniques: none of them makes quantizers", "add one of: toy.ranges"]
    ),
    pytest.param("version: 1", "version: 2", ["1:10: version: expected 1, received 2"]),
    pytest.param("version: 1", "version: true", ["1:10: version: expected 1, received true or false"]),
    pytest.param("version: 1", "version: 1\nseed: -1", ["2:7: seed: expected at least 0, received -1"]),
    pytest.param("version: 1", f"version: 1\nseed: {'9' * 5000}", ["2:7: cannot be read as a value of type int"]),
    pytest.param("version: 1", "version: 1\nversion: 1", ["2:1: the key 'version' is given twice", "line 1"]),
    pytest.param("version: 1", "version: 1\n1: 2", ["2:1: a key must be text, received '1'"]),
    pytest.param("version: 1", "version: 1\n? [a]\n: 2", ["a key must be text, received a list or a mapping"]),
    pytest.param("name: vit", "name: !!python/object:os.system x", ["2:30: the tag", "not allowed", "remove the tag"]),
    pytest.param("name: vit", "name: !secret x", ["2:30: the tag '!secret' is not allowed"]),
    pytest.param("name: vit", 'name: "\\ud800"', ["2:30: expected whole characters, received half of one"]),
    pytest.param("split: 3", "split: &a [*a]", ["an alias repeats itself"]),
    pytest.param(
        "quantize:\n", "quantize:\n  overrides: [{match: a}]\n", ["8:15: quantize.overrides.0: changes nothing"]
    ),
    pytest.param(
        "quantize:\n",
        "quantize:\n  overrides: [{match: a, skip: true, bits: 3}]\n",
        ["8:15: quantize.overrides.0: 'skip' leaves the sites in float, so 'bits' cannot apply"],
    ),
]


@pytest.mark.parametrize(("old", "new", "parts"), WRONG)
def test_one_mistake_is_one_problem(write: Write, old: str, new: str, parts: list[str]) -> None:
    found = problems(write(old, new))
    assert len(found) == 1, found
    for part in parts:
        assert part in found[0]


def test_two_problems_are_reported_in_the_order_of_the_file(write: Write) -> None:
    path = write(text=GOOD.replace("bits: 4}", "bits: 99}").replace("toy.ranges", "toy.rangs"))
    first, second = problems(path)
    assert first.startswith("8:19: quantize.weights.bits: expected at most 16, received 99")
    assert second.startswith("13:10: techniques.1.use: there is no technique 'toy.rangs'")


def test_reading_problems_and_wrong_values_are_reported_together(write: Write) -> None:
    path = write(text=GOOD.replace("version: 1", "version: 1\nversion: 1").replace("name: vit", "nam: vit"))
    assert [text.partition(":")[0] for text in problems(path)] == ["2", "3"]


def test_the_snippet_points_at_the_place(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write("bits: 4}", "bits: 99}"))
    line, caret = caught.value.problems[0].snippet.splitlines()
    assert line == "    8 |   weights: {bits: 99}"
    assert caret == "      |                   ^^"


def test_a_long_line_is_cut_around_the_place(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write("name: vit", f"name: vit, checkpoint_path: {'x' * 500}, nam: a"))
    line, caret = caught.value.problems[0].snippet.splitlines()
    assert len(line) < 120
    assert line[caret.index("^") :].startswith("nam")


def test_invalid_yaml_is_reported_with_its_place(write: Write) -> None:
    (found,) = problems(write(text="a: [1,\n b: : 2"))
    assert found.startswith("2:5: this is not YAML: ")
    (found,) = problems(write(text="[" * 800))
    assert found.startswith("1:65: is nested more than 64 levels deep")
    (found,) = problems(write(text="a: 1\n---\nb: 1\n"))
    assert "not YAML" in found
    (found,) = problems(write(text="a: \x00"))
    assert "not YAML" in found
    (found,) = problems(write(text="a:\n\tb: 1"))
    assert found.startswith("2:1: this is not YAML: ")
    assert found.endswith("indent with spaces")


def test_aliases_of_aliases_do_not_grow_without_bound(write: Write) -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
    found = problems(write(text="\n".join(["l0: &l0 [x]", *levels])))
    assert any("more than 20000 values" in text for text in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe is empty"),
        ("# only a comment\n", "the recipe is empty"),
        ("- a\n", "expected a mapping at the top, received a list"),
        ("text", "expected a mapping at the top, received 'text'"),
    ],
)
def test_a_file_without_a_mapping_is_refused(write: Write, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(write(text=text))


def test_files_that_cannot_be_read(tmp_path: Path, write: Write) -> None:
    write()
    with pytest.raises(InputError, match=r"no such file\n.*did you mean 'recipe.yaml'"):
        load(tmp_path / "recip.yaml")
    with pytest.raises(InputError, match=r"no such file\n.*none does not exist either"):
        load(tmp_path / "none" / "recipe.yaml")
    with pytest.raises(InputError, match=r"this is a folder\n.*recipe.yaml"):
        load(tmp_path)
    with pytest.raises(InputError, match="cannot be read: Not a directory"):
        load(tmp_path / "recipe.yaml" / "x")
    (tmp_path / "binary.yaml").write_bytes(b"\x80\x81\xff")
    with pytest.raises(InputError, match="is not UTF-8"):
        load(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"a" * (2 << 20))
    with pytest.raises(InputError, match="at most 1024 KiB"):
        load(tmp_path / "large.yaml")


def test_anchors_and_merges_work(write: Write) -> None:
    text = GOOD.replace("calibration: {", "calibration: &it {").replace(
        "{source: images, split: test}", "{<<: *it, split: test}"
    )
    data = load(write(text=text)).dump()["data"]
    assert data["evaluation"] == {"source": "images", "split": "test", "images": 8}
    assert data["calibration"]["split"] == "train"


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load(path).seed == 0


def test_paths_stay_as_they_are_written(write: Write) -> None:
    recipe = load(write("name: vit", "name: vit, checkpoint_path: a/../b.safetensors"))
    assert recipe.dump()["model"]["checkpoint_path"] == "a/../b.safetensors"


def test_the_same_technique_may_be_used_twice(write: Write) -> None:
    recipe = load(write("  - use: toy.ranges\n", "  - use: toy.ranges\n  - use: toy.ranges\n"))
    assert len(recipe.techniques) == 3


@pytest.mark.parametrize("section", ["finetune", "qat"])
def test_training_needs_images(section: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{GOOD}{section}: {{epochs: 1}}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, registry=registry())
    place = f"recipe.yaml:{len(GOOD.splitlines()) + 1}:{len(section) + 3}"
    assert f"{place}: {section}: there are no training images" in str(caught.value)
    recipe = load_recipe(path, ["data.training.source=images", "data.training.split=train"], registry=registry())
    assert getattr(recipe, section).learning_rate == 2e-5
