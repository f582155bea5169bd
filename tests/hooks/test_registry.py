"""Discovery: whatever a plugin gets wrong is named with its distribution and version, and takes nothing else down."""

import sys
import textwrap
from importlib.metadata import EntryPoint, entry_points

import pytest

from qplug import PluginError, Technique
from qplug.hooks.registry import GROUP, build, check_technique

TECHNIQUE = '''
from __future__ import annotations
from typing import Literal
import qplug


class Mine(qplug.Technique):
    """Takes nothing."""

    class Config(qplug.Config):
        use: Literal["{tag}"] = "{tag}"

    @qplug.hookimpl
    def {hook}({parameters}):
        return None


@qplug.hookimpl
def {offer}():
    return [{offered}]
'''
GOOD = {
    "tag": "broken.mine",
    "hook": "qplug_smooth",
    "parameters": "self, group",
    "offer": "qplug_techniques",
    "offered": "Mine",
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a plugin on the path as pip would: a module, and a dist-info folder with its entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, source, *, distribution=None, version="1.2.3", module=None):
        module = module or f"qplug_test_{name}"
        distribution = distribution or f"qplug-{name}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}\n")
        return distribution

    def found(*distributions):
        return build(point for point in entry_points(group=GROUP) if point.dist and point.dist.name in distributions)

    make.found = found
    yield make
    for module in [name for name in sys.modules if name.startswith("qplug_test_")]:
        del sys.modules[module]


BROKEN = {
    "does not import": ("import qplug_there_is_no_such_module", "ModuleNotFoundError: No module named"),
    "raises on import": ("raise RuntimeError('out of luck')", "RuntimeError: out of luck"),
    "is no python": ("def (", "SyntaxError"),
    "implements nothing": ("", "implements no qplug hook"),
    "misspelt discovery hook": (
        TECHNIQUE.format(**GOOD | {"offer": "qplug_technique"}),
        "unknown hook 'qplug_technique'",
    ),
    "misspelt run hook": (TECHNIQUE.format(**GOOD | {"hook": "qplug_smoothe"}), "unknown hook 'qplug_smoothe'"),
    "wrong signature": (
        TECHNIQUE.format(**GOOD | {"parameters": "self, grup"}),
        "qplug_smooth(grup) Argument(s) {'grup'} are declared",
    ),
    "wrong prefix": (TECHNIQUE.format(**GOOD | {"tag": "other.mine"}), "'other.mine' must be named 'broken.…'"),
    "no technique": (TECHNIQUE.format(**GOOD | {"offered": "int"}), "int is not a subclass of qplug.Technique"),
    "offered twice": (TECHNIQUE.format(**GOOD | {"offered": "Mine, Mine"}), "'broken.mine' is offered twice"),
    "raises while running": (TECHNIQUE.format(**GOOD | {"offered": "1 / 0"}), "ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_a_row_and_takes_nothing_else_down(install, case):
    source, reason = BROKEN[case]
    good = install("fine", TECHNIQUE.format(**GOOD | {"tag": "fine.mine"}))
    registry = install.found(good, install("broken", source))
    (row,) = registry.broken()
    assert str(row) == "broken (qplug-broken 1.2.3)"
    assert reason in row.error
    assert list(registry.techniques) == ["fine.mine"]
    assert registry.owners["technique:fine.mine"].version == "1.2.3"


def test_a_failing_import_says_where(install):
    registry = install.found(install("broken", "\n\nimport qplug_there_is_no_such_module"))
    assert "qplug_test_broken.py:3" in registry.broken()[0].error


def test_two_plugins_of_one_name_are_both_refused_and_both_named(install):
    source = TECHNIQUE.format(**GOOD | {"tag": "twin.mine"})
    first = install("twin", source, distribution="qplug-one")
    second = install("twin", source, distribution="qplug-two", version="0.9")
    good = install("fine", TECHNIQUE.format(**GOOD | {"tag": "fine.mine"}))
    registry = install.found(first, second, good)
    assert list(registry.techniques) == ["fine.mine"]
    assert [str(row) for row in registry.broken()] == ["twin (qplug-one 1.2.3)", "twin (qplug-two 0.9)"]
    for row in registry.broken():
        assert "claimed by qplug-one 1.2.3 and by qplug-two 0.9" in row.error


@pytest.mark.parametrize(
    ("kind", "hook", "body"),
    [
        ("model", "qplug_models", "[type('M', (qplug.ModelSource,), {'Config': Tagged})]"),
        ("dataset", "qplug_datasets", "[type('D', (qplug.DataSource,), {'Config': Tagged})]"),
        ("backend", "qplug_backends", "{'same': qplug.BackendOffer('module:Class')}"),
        ("quantizer", "qplug_quantizers", "{'same': 'module:Class'}"),
    ],
)
def test_what_two_plugins_offer_under_one_name_belongs_to_the_first(install, kind, hook, body):
    source = f"""
        from typing import Literal
        import qplug

        class Tagged(qplug.Config):
            source: Literal["same"] = "same"

        @qplug.hookimpl
        def {hook}():
            return {body}
    """
    registry = install.found(install("aaa", source), install("bbb", source))
    (row,) = registry.broken()
    assert str(row) == "bbb (qplug-bbb 1.2.3)"
    assert f"{kind} 'same' is already offered by aaa (qplug-aaa 1.2.3)" in row.error
    assert registry.owners[f"{kind}:same"].name == "aaa"


def test_a_backend_is_offered_with_what_it_cannot_execute(install):
    source = """
        import qplug

        @qplug.hookimpl
        def qplug_backends():
            return {"mine": "module:Class"}
    """
    (row,) = install.found(install("aaa", source)).broken()
    assert row.error == "qplug_backends: expected a qplug.BackendOffer for 'mine', got 'module:Class'"


def test_a_refused_plugin_leaves_nothing_behind(install):
    both = "Mine, type('Other', (Mine,), {'Config': type('Config', (qplug.Config,), {})})"
    registry = install.found(install("broken", TECHNIQUE.format(**GOOD | {"offered": both})))
    assert registry.broken()
    assert not registry.techniques
    assert not registry.owners


def test_an_entry_point_without_a_distribution_is_called_unknown():
    (row,) = build([EntryPoint("lost", "qplug_there_is_no_such_module", GROUP)]).broken()
    assert str(row) == "lost (unknown ?)"


def test_an_entry_point_may_name_an_object(install, tmp_path):
    source = """
        import qplug

        class Door:
            @qplug.hookimpl
            def qplug_quantizers(self):
                return {"mine": "module:Class"}

        door = Door()
    """
    (tmp_path / "qplug_test_object.py").write_text(textwrap.dedent(source))
    registry = build([EntryPoint("object", "qplug_test_object:door", GROUP)])
    assert [row.error for row in registry.plugins] == [""]
    assert registry.quantizers == {"mine": "module:Class"}


def test_the_order_of_installation_does_not_matter(install):
    sources = [install(name, TECHNIQUE.format(**GOOD | {"tag": f"{name}.mine"})) for name in ("bbb", "aaa")]
    points = [point for point in entry_points(group=GROUP) if point.dist.name in sources]
    assert list(build(points).techniques) == list(build(reversed(points)).techniques) == ["aaa.mine", "bbb.mine"]


def test_a_technique_without_a_tag_is_refused():
    with pytest.raises(PluginError, match="has no field use"):
        check_technique(type("Untagged", (Technique,), {}))


def test_what_is_installed_here_works():
    registry = build(entry_points(group=GROUP))
    assert not registry.broken(), [f"{row}: {row.error}" for row in registry.broken()]


def test_metrics_and_adapters_are_collected(install):
    source = """
        import qplug

        @qplug.hookimpl
        def qplug_metrics():
            return [qplug.Metric("distance", lambda float_logits, logits, labels: 0.0)]

        @qplug.hookimpl
        def qplug_adapters():
            return [qplug.Adapter("module:Attention", lambda original: None)]
    """
    registry = install.found(install("extras", source))
    assert list(registry.metrics) == ["extras.distance"]
    assert [adapter.path for adapter in registry.adapters] == ["module:Attention"]


def test_blocks_are_collected_as_paths_and_nothing_else(install):
    source = """
        import qplug

        @qplug.hookimpl
        def qplug_blocks():
            return ["mine.net:ResidualBlock", "mine:Other"]
    """
    assert install.found(install("mine", source)).blocks == ["mine.net:ResidualBlock", "mine:Other"]
    for wrong, shown in (("dict", "<class 'dict'>"), ("'ResidualBlock'", "'ResidualBlock'")):
        broken = source.replace('["mine.net:ResidualBlock", "mine:Other"]', f"[{wrong}]")
        registry = install.found(install(f"wrong_{wrong.strip(chr(39)).lower()}", broken))
        assert registry.blocks == []
        assert f"qplug_blocks: expected the path of a class as 'module:Class', got {shown}" in registry.plugins[0].error
