"""Recipes as values: they survive a round trip, and their JSON Schema knows every plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pydantic import ValidationError
from recipe_toys import registry

from qplug.core.types import Granularity, QuantSpec, Site, SiteKind
from qplug.recipe import ActivationConfig, Override, Recipe, TensorConfig, json_schema, load_recipe, recipe_type

BITS = st.integers(2, 16)
GRANULARITY = st.sampled_from([g.value for g in Granularity])
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
TENSORS = st.fixed_dictionaries({"bits": BITS}, optional={"granularity": GRANULARITY, "symmetric": st.booleans()})
OVERRIDES = st.fixed_dictionaries({"match": NAMES}).flatmap(
    lambda base: st.one_of(
        st.just({**base, "skip": True}),
        st.builds(lambda bits, symmetric: {**base, "bits": bits, "symmetric": symmetric}, BITS, st.booleans()),
    )
)
IMAGES = st.fixed_dictionaries({"source": st.just("images")}, optional={"images": st.integers(1, 10**9)})
FOLDERS = st.fixed_dictionaries({"source": st.just("folder"), "path": NAMES.filter(lambda text: "\0" not in text)})
RANGES = st.fixed_dictionaries({"use": st.just("toy.ranges")}, optional={"percentile": st.floats(50, 100)})
SPLITS = st.fixed_dictionaries(
    {"use": st.just("toy.split")},
    optional={"split": st.integers(-(2**63), 2**63) | st.just("auto"), "limits": st.lists(st.integers(), max_size=3)},
)
RECIPES = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "model": st.fixed_dictionaries({"source": st.just("named"), "name": NAMES}),
        "data": st.fixed_dictionaries({"calibration": IMAGES | FOLDERS, "evaluation": IMAGES | FOLDERS}),
        "quantize": st.fixed_dictionaries(
            {"weights": TENSORS, "activations": TENSORS}, optional={"overrides": st.lists(OVERRIDES, max_size=3)}
        ),
        "techniques": st.builds(lambda steps, last: [*steps, last], st.lists(SPLITS | RANGES, max_size=3), RANGES),
    },
    optional={"seed": st.integers(0, 2**32 - 1), "backend": st.sampled_from(["brevitas", "modelopt"])},
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=RECIPES)
def test_round_trip(tmp_path: Path, values: dict[str, Any]) -> None:
    recipe = recipe_type(registry()).model_validate(values)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.yaml(), encoding="utf-8")
    again = load_recipe(path, registry=registry())
    assert again.dump() == {**recipe.dump(), "name": "recipe"}  # the file's
    path.write_text(again.yaml(), encoding="utf-8")
    assert load_recipe(path, registry=registry()) == again


def test_the_schema_knows_every_component() -> None:
    schema = json_schema(registry())
    text = str(schema)
    for name in ("toy.ranges", "toy.split", "'named'", "'folder'", "per cent of the values kept"):
        assert name in text
    assert schema["properties"]["backend"]["enum"] == ["brevitas", "modelopt"]
    assert schema["additionalProperties"] is False


def test_defaults_of_granularity_and_the_specification() -> None:
    assert TensorConfig(bits=3, symmetric=False).spec() == QuantSpec(3, Granularity.PER_TENSOR, symmetric=False)
    floating = ActivationConfig(bits=3, symmetric=False, zero_point="float").spec()
    assert floating == QuantSpec(3, symmetric=False, zero_point="float")
    assert recipe_type(registry()).model_fields["backend"].default == "brevitas"


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("blocks.0.*", True),
        ("blocks.0.mlp.fc2", True),
        ("post_gelu", True),
        ("*.fc2.input", True),
        ("blocks.1*", False),
    ],
)
def test_overrides_match_names_modules_and_kinds(pattern: str, matches: bool) -> None:
    site = Site("blocks.0.mlp.fc2.input", SiteKind.POST_GELU, "blocks.0.mlp.fc2", "input", (17, 192))
    assert Override(match=pattern, bits=8).matches(site) is matches


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Override(match="a", bits=2).bits = 3  # type: ignore[misc]
    assert Recipe.model_config["extra"] == "forbid"
