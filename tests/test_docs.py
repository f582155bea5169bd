"""The reference pages that the site's build generates: each technique, hook, key and command is on its page."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def generators():
    sys.path.insert(0, str(ROOT / "docs"))
    yield
    sys.path.remove(str(ROOT / "docs"))


def test_every_hook_has_a_section_with_its_signature():
    from generators.hooks import page
    from generators.sources import hook_specifications

    text = page()
    for specs in hook_specifications():
        for name in filter(lambda name: name.startswith("qplug_"), vars(specs)):
            assert f"### {name}\n\n```python\ndef {name}(" in text


def test_every_technique_has_its_paper_hooks_and_bounds():
    from generators.sources import registry
    from generators.techniques import pages

    found = pages()
    for name, technique in registry().techniques.items():
        section = found[name.partition(".")[0]].partition(f"## {name}\n")[2]
        assert section.partition("\n## ")[0].count("**Hooks**") == 1
        for field in set(technique.Config.model_fields) - {technique.tag}:
            assert f"| `{field}` |" in section
    assert "| `candidates` | whole number ≥ 2, ≤ 1000 | `100` | candidates of s0 |" in found["mptq_vit"]
    assert "**Paper**: Tai and Wu 2024, MPTQ-ViT, section 3.2, Eq. 6–8." in found["mptq_vit"]


def test_the_recipe_page_has_every_section_and_source():
    from generators.recipe import page

    text = page()
    for head in (
        "## Recipe",
        "### quantize.weights",
        "### qat.learn",
        "## model, source timm",
        "## data, source folder",
    ):
        assert f"{head}\n" in text
    assert "| `bits` | whole number ≥ 2, ≤ 16 | required | bit width, in bits |" in text
    assert "| `backend` | `brevitas`, `modelopt` | `brevitas` |" in text


def test_the_command_page_has_every_command():
    from generators.commands import page

    from qplug.cli.app import COMMANDS

    text = page()
    groups = {"zoo": "zoo train", "cache": "cache prune"}
    for command in COMMANDS:
        assert f"## qplug {groups.get(command, command)}\n" in text
    assert "| `--set KEY=VALUE` |  | Change a value of the recipe; repeatable. |" in text


def test_docstrings_become_markdown():
    from generators.text import docstring

    def example():
        """Return ``x < y`` in [0, 1].

        Args:
            x: a *bound*,
                in dB.

        Example::

            if True:

                run()
        """

    assert docstring(example) == (
        "Return `x < y` in \\[0, 1\\].\n\n**Args**\n\n- x: a \\*bound\\*, in dB.\n\n"
        "**Example**\n\n```python\nif True:\n\n    run()\n```\n"
    )


def row(family, **more):
    return {"family": family, "model": f"{family}_s", "parameters": 2_500_000, "size": [3, 64, 64], "error": "", **more}


MEASURED = {"inspected": 1.0, "coverage": 1.0, "sqnr": 30.26, "sites": 12, "float": {}, "norms": 0, "seconds": 9.7}


def test_the_page_of_timms_families_counts_and_names_what_is_in_float():
    from generators.timm_families import page

    rows = [
        row("b", **MEASURED | {"coverage": 0.97, "float": {"Conv": 0.03}, "norms": 2}),
        row("a", **MEASURED),
        row("c", error="not finished within 120 s", seconds=120.0),
    ]
    text = page(rows, 120)
    assert "3 families: 2 run, 1 at 100 %, 2 at 95% or more." in text
    assert text.splitlines()[-3:] == [
        "| a | `a_s` | 2.5 | 3×64×64 | 100.0 % | 12 | 30.3 dB |  | 10 |",
        "| b | `b_s` | 2.5 | 3×64×64 | 97.0 % | 12 | 30.3 dB | Conv 3 %; 2 BatchNorms; inspect says 1.0 | 10 |",
        "| c | `c_s` | 2.5 | 3×64×64 | error | – | – | not finished within 120 s | 120 |",
    ]


def test_rows_that_are_kept_are_not_measured_again(tmp_path, monkeypatch, capsys):
    from generators import timm_families

    asked = []

    def measure(family, limit, own_size):
        asked.append(family)
        return row(family, **MEASURED) if family == "a" else row(family, error="no", seconds=1.0)

    monkeypatch.setattr(timm_families, "measure", measure)
    options = ["--keep", str(tmp_path / "rows"), "--out", str(tmp_path / "page.md"), "--families", "a", "b"]
    for more in ([], [], ["--retry"]):
        assert timm_families.main([*options, *more]) == 0
    assert asked == ["a", "b", "b"]
    assert "2 families: 1 run" in (tmp_path / "page.md").read_text()


@pytest.mark.slow
def test_the_smallest_member_and_the_smallest_image():
    from generators.timm_families import smallest, smallest_size

    assert smallest("levit") == ("levit_128s", 7_777_058)
    assert smallest_size("levit_128s") == (3, 64, 64)
    assert smallest_size("levit_128s", ()) == (3, 224, 224)


@pytest.mark.real
@pytest.mark.parametrize("family", ["levit", "nfnet", "swin_transformer_v2", "xcit", "repvit"])
def test_a_family_is_measured(family):
    from generators.timm_families import measure

    found = measure(family, 600)
    assert found["error"] == ""
    assert found["sqnr"] > 5  # an image may leave the ranges of the two that calibrate
    assert found["inspected"] == found["coverage"]
