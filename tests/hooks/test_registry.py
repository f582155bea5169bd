"""Discovery: whatever a plugin gets wrong is named with its distribution and version, and takes nothing else down."""

import sys
import textwrap
from importlib.metadata import EntryPoint, entry_points

import pytest

from qplug import PluginError, Technique, __version__
from qplug.hooks.checks import check_technique
from qplug.hooks.registry import CORE, GROUP, build

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
    "misspelt run hook, with a suggestion": (
        TECHNIQUE.format(**GOOD | {"hook": "qplug_smoothe"}),
        "did you mean 'qplug_smooth'?",
    ),
    "a technique's hook in the module": (
        "import qplug\n@qplug.hookimpl\ndef qplug_smooth(group): ...",
        "unknown hook 'qplug_smooth'\n  → it is a hook of a technique: implement it there",
    ),
    "a module's hook in the technique": (
        TECHNIQUE.format(**GOOD | {"hook": "qplug_metrics", "parameters": "self"}),
        "technique 'broken.mine': unknown hook 'qplug_metrics'\n  → it is a hook of the plugin's module",
    ),
    "a hook that is not marked": (
        TECHNIQUE.format(**GOOD) + "\ndef qplug_metrics():\n    return []",
        "qplug_test_broken: qplug_metrics is not marked with @hookimpl\n  → write @qplug.hookimpl above it",
    ),
    "a misspelt hook that is not marked": (
        TECHNIQUE.format(**GOOD) + "\ndef qplug_metricks():\n    return []",
        "qplug_metricks is not marked with @hookimpl, and there is no such hook\n  → did you mean 'qplug_metrics'?",
    ),
    "wrong parameter": (
        TECHNIQUE.format(**GOOD | {"parameters": "self, grup"}),
        "technique 'broken.mine': qplug_smooth has an unknown parameter 'grup'\n"
        "  → did you mean 'group'? the hook passes group, stats",
    ),
    "parameter with a default value": (
        TECHNIQUE.format(**GOOD | {"parameters": "self, group, stats=None"}),
        "technique 'broken.mine': qplug_smooth gives 'stats' a default value, so pluggy never passes it\n"
        "  → remove the default",
    ),
    "parameters by the dozen": (
        TECHNIQUE.format(**GOOD | {"parameters": "self, **all_of_them"}),
        "technique 'broken.mine': qplug_smooth takes **all_of_them, which pluggy does not pass",
    ),
    "a hook that returns nothing": (
        TECHNIQUE.format(**GOOD).replace("return [Mine]", "[Mine]"),
        "qplug_techniques returned nothing",
    ),
    "a technique in place of a list": (
        TECHNIQUE.format(**GOOD).replace("return [Mine]", "return Mine"),
        "qplug_techniques: expected a list, got <class",
    ),
    "ends the process on import": ("raise SystemExit(0)", "SystemExit: 0 ("),
    "ends the process in a hook": (
        TECHNIQUE.format(**GOOD | {"offered": "exit(0)"}),
        "SystemExit: 0 (",
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


OFFERS = {
    "model": ("qplug_models", "[type('M', (qplug.ModelSource,), {'Config': Tagged})]"),
    "dataset": ("qplug_datasets", "[type('D', (qplug.DataSource,), {'Config': Tagged})]"),
    "backend": ("qplug_backends", "{'NAME': qplug.BackendOffer('module:Class')}"),
    "quantizer": ("qplug_quantizers", "{'NAME': 'module:Class'}"),
    "task": ("qplug_tasks", "{'NAME': 'module:Class'}"),
}


OFFERS["adapter"] = ("qplug_adapters", "[qplug.Adapter('NAME', lambda module: None)]")


TIMM = "timm.layers.attention:Attention"


def offering(kind, name):
    hook, body = OFFERS[kind]
    return f"""
        from typing import Literal
        import qplug

        class Tagged(qplug.Config):
            source: Literal["{name}"] = "{name}"

        @qplug.hookimpl
        def {hook}():
            return {body.replace("NAME", name)}
    """


@pytest.mark.parametrize("kind", OFFERS)
def test_what_two_plugins_offer_under_one_name_is_refused_of_both(install, kind):
    good = install("fine", TECHNIQUE.format(**GOOD | {"tag": "fine.mine"}))
    registry = install.found(
        install("bbb", offering(kind, "same")), install("aaa", offering(kind, "same"), version="0.3"), good
    )
    assert [str(row) for row in registry.broken()] == ["aaa (qplug-aaa 0.3)", "bbb (qplug-bbb 1.2.3)"]
    for row in registry.broken():
        assert row.error.startswith(f"{kind} 'same' is claimed by aaa (qplug-aaa 0.3) and by bbb (qplug-bbb 1.2.3)")
    assert list(registry.owners) == ["technique:fine.mine"]


@pytest.mark.parametrize("name", ["aaa", "zzz"])
@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("model", "zoo"),
        ("dataset", "digits"),
        ("backend", "brevitas"),
        ("quantizer", "uniform"),
        ("task", "classification"),
        ("adapter", TIMM),
    ],
)
def test_a_core_name_stays_the_cores(install, kind, taken, name):
    distribution = install(name, offering(kind, taken))
    core = [EntryPoint(*CORE, GROUP)]
    registry = build([point for point in entry_points(group=GROUP) if point.dist.name == distribution] + core)
    (row,) = registry.broken()
    assert str(row) == f"{name} (qplug-{name} 1.2.3)"
    assert row.error == f"{kind} '{taken}' is qplug's own\n  → give it another name"
    assert kind == "adapter" or registry.owners[f"{kind}:{taken}"].name == "core"
    assert registry.plugins[0].name == "core"


def test_a_plugin_named_core_does_not_take_the_core_away(install):
    distribution = install("core", offering("quantizer", "mine"))
    core = [EntryPoint(*CORE, GROUP)]
    registry = build([point for point in entry_points(group=GROUP) if point.dist.name == distribution] + core)
    assert [row.error for row in registry.broken()] == [
        "the name 'core' is qplug's own\n  → give the entry point another name"
    ]
    assert "uniform" in registry.quantizers


def test_the_cores_module_under_another_name_is_not_the_core():
    registry = build([EntryPoint("aaa", CORE[1], GROUP), EntryPoint(*CORE, GROUP)])
    assert [row.name for row in registry.broken()] == ["aaa"]
    assert registry.owners["model:zoo"].name == "core"


@pytest.mark.parametrize("name", ["quantized", "seconds"])
def test_a_metric_is_not_named_as_one_of_the_core(install, name):
    source = """
        import qplug

        @qplug.hookimpl
        def qplug_metrics():
            return [qplug.Metric("top1", lambda float_logits, logits, labels: 1.0)]
    """
    (row,) = install.found(install(name, source)).broken()
    assert row.error.startswith(f"metric '{name}.top1' is named as qplug's own '{name}.…'")


def test_the_names_of_the_cores_metrics_are_reserved():
    from trial_techniques import Smooth

    from qplug.hooks.offers import RESERVED
    from qplug.testing import toy_run

    assert {name.partition(".")[0] for name in toy_run(Smooth).metrics if "." in name} <= set(RESERVED)


@pytest.mark.parametrize(
    ("hook", "body", "reason"),
    [
        ("qplug_metrics", "[len]", "qplug_metrics: expected a qplug.Metric with a function, got <built-in"),
        ("qplug_metrics", "[qplug.Metric('x', 1)]", "qplug_metrics: expected a qplug.Metric with a function"),
        ("qplug_models", "[int]", "qplug_models: expected a subclass of qplug.ModelSource with a Config, got <class"),
        ("qplug_datasets", "[qplug.ModelSource]", "qplug_datasets: expected a subclass of qplug.DataSource"),
        ("qplug_quantizers", "{'mine': int}", "qplug_quantizers: expected the path of a class as 'module:Class'"),
        ("qplug_quantizers", "['mine']", "qplug_quantizers: expected a mapping from names, got ['mine']"),
        ("qplug_adapters", "['mine']", "qplug_adapters: expected a qplug.Adapter, got 'mine'"),
    ],
)
def test_an_offer_of_another_type_is_refused(install, hook, body, reason):
    source = f"""
        import qplug

        @qplug.hookimpl
        def {hook}():
            return {body}
    """
    (row,) = install.found(install("broken", source)).broken()
    assert row.error.startswith(reason)


def test_what_a_plugin_prints_on_import_does_not_reach_the_screen(install, capsys):
    registry = install.found(
        install("loud", TECHNIQUE.format(**GOOD | {"tag": "loud.mine"}) + "\nprint('hello', 'there')"),
        install("broken", "print('x' * 999)\n1 / 0"),
    )
    assert capsys.readouterr().out == ""
    broken, loud = registry.plugins
    assert (loud.error, loud.printed) == ("", "hello there")
    assert "ZeroDivisionError" in broken.error
    assert broken.printed == "x" * 200


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ("'1'", ""),
        ("1", ""),
        ("'1.0'", ""),
        ("'2'", "was written for hook API 2, and qplug VERSION has hook API 1.0\n  → update qplug"),
        ("'1.7'", "was written for hook API 1.7, and qplug VERSION has hook API 1.0\n  → update qplug"),
        ("'0.9'", "was written for hook API 0.9, and qplug VERSION has hook API 1.0\n  → update the plugin"),
        ("'new'", "qplug_hook_api must be a version such as '1', got 'new'"),
        ("None", "qplug_hook_api must be a version such as '1', got None"),
    ],
)
def test_a_plugin_for_another_hook_api_is_refused(install, stated, reason):
    source = TECHNIQUE.format(**GOOD | {"tag": "old.mine"}) + f"\nqplug_hook_api = {stated}\n"
    registry = install.found(install("old", source))
    (row,) = registry.plugins
    assert str(row) == "old (qplug-old 1.2.3)"
    assert row.error.startswith(reason.replace("VERSION", __version__))
    assert list(registry.techniques) == ([] if reason else ["old.mine"])


def test_the_hook_api_is_named_where_the_import_fails_for_it(install):
    (row,) = install.found(install("old", "qplug_hook_api = '2'\nfrom qplug import NameOfVersionTwo")).plugins
    assert row.error.startswith("was written for hook API 2")
    (row,) = install.found(install("new", "qplug_hook_api = '1'\nfrom qplug import NoSuchName")).plugins
    assert row.error.startswith("ImportError: cannot import name 'NoSuchName'")


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
