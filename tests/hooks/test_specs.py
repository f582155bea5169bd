"""The hook specifications are the reference manual: each says what a reader needs, and each is tried by some test."""

import ast
import inspect
import re
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from paths import ROOT
from pydantic import Field

import qplug
from qplug import Technique
from qplug.hooks.checks import check_hooks
from qplug.hooks.specs import HOOK_API, DiscoverySpecs, RunSpecs, hookimpl

TESTS, PLUGINS = ROOT / "tests", ROOT / "plugins"
DISCOVERY = [name for name in vars(DiscoverySpecs) if name.startswith("qplug_")]
RUN = [name for name in vars(RunSpecs) if name.startswith("qplug_")]
WATCHERS = {"qplug_observe"}  # what they return is not used


def text(specs, name):
    """The specification's documentation on one line, and that of the one that it refers to for when it is called."""
    doc = inspect.getdoc(getattr(specs, name)) or ""
    referred = re.search(r"Called as ``(qplug_\w+)`` is", doc)
    return " ".join((doc + (text(specs, referred[1]) if referred else "")).split())


def test_every_method_is_a_specification():
    for specs in (DiscoverySpecs, RunSpecs):
        for name, member in vars(specs).items():
            assert name.startswith(("qplug_", "__")), f"{name} is not prefixed"
            if name.startswith("qplug_"):
                assert hasattr(member, "qplug_spec"), f"{name} is not marked with @hookspec"


@pytest.mark.parametrize("name", DISCOVERY)
def test_discovery_hooks_say_what_they_offer(name):
    assert len(text(DiscoverySpecs, name)) > 40


@pytest.mark.parametrize("name", RUN)
def test_run_hooks_say_when_they_are_called(name):
    assert re.search(r"[Cc]alled (for|once|as)", text(RunSpecs, name))


@pytest.mark.parametrize("name", [name for name in RUN if name not in WATCHERS])
def test_run_hooks_say_what_none_means(name):
    assert "``None``" in text(RunSpecs, name)


@pytest.mark.parametrize("name", [*DISCOVERY, *RUN])
def test_every_hook_shows_an_example_that_would_be_taken(name):
    specs = DiscoverySpecs if name in DISCOVERY else RunSpecs
    doc = inspect.getdoc(getattr(specs, name)) or ""
    assert "Example::" in doc
    written = textwrap.dedent(doc.partition("Example::")[2])
    module = ast.parse(written)
    assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in module.body)
    made = {"hookimpl": hookimpl, "qplug": qplug, "Literal": Literal, "Field": Field}
    exec(written, made)
    example = made[name].__get__(object()) if specs is RunSpecs else made[name]
    assert check_hooks(SimpleNamespace(**{name: example}), specs, "the example") == 1


@pytest.mark.parametrize("name", [*DISCOVERY, *RUN])
def test_hooks_are_described_in_short_sentences(name):
    specs = DiscoverySpecs if name in DISCOVERY else RunSpecs
    doc = (inspect.getdoc(getattr(specs, name)) or "").partition("Example::")[0]
    for paragraph in doc.split("\n\n"):
        for sentence in re.split(r"(?<=[a-z`)\]])[.;:] ", " ".join(paragraph.split())):
            assert len(sentence.split()) <= 25, f"{name}: {len(sentence.split())} words: {sentence}"


def test_the_hook_api_has_a_major_and_a_minor_version():
    major, minor = HOOK_API
    assert (major, minor) >= (1, 0)


def test_the_attributes_of_a_technique_are_documented():
    doc = inspect.getdoc(Technique)
    for name in ("Config", "config", "paper", "notes", "gradients", "needs", "allocates"):
        assert re.search(rf"^    {name}: ", doc, re.MULTILINE), f"Technique says nothing of '{name}'"


@pytest.mark.parametrize("name", [*DISCOVERY, *RUN])
def test_parameters_are_typed(name):
    spec = getattr(DiscoverySpecs if name in DISCOVERY else RunSpecs, name)
    signature = inspect.signature(spec)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in list(signature.parameters.values())[1:]:
        assert parameter.annotation is not inspect.Parameter.empty, f"{name}: {parameter.name} has no type"
        assert parameter.default is inspect.Parameter.empty, (
            f"{name}: pluggy would not pass the default of {parameter.name}"
        )


@pytest.mark.parametrize("name", [*DISCOVERY, *RUN])
def test_every_hook_is_tried_by_a_test(name):
    sources = [*TESTS.rglob("*.py"), *PLUGINS.glob("*/tests/test_*.py")]
    assert any(name in path.read_text() for path in sources if path != Path(__file__)), f"no test mentions {name}"
