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
    for command in (one for one in COMMANDS if one != "zoo"):
        assert f"## qplug {command}\n" in text
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
