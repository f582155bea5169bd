"""A third party's way: pip installs a plugin next to qplug, and a recipe can use it, with nothing else changed."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

from qplug.hooks.scaffold import new_plugin

EXAMPLE = ROOT / "plugins" / "qplug-example-plugin"


def pip_install(plugin, target):
    """As ``pip install PLUGIN`` does, into a folder of its own, with no network."""
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(plugin)]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=target.parent)


def qplug(*arguments, path):
    """The command line in a process of its own, with ``path`` installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *filter(None, sys.path)])}
    command = [sys.executable, "-c", "from qplug.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=path.parent)


@pytest.fixture(scope="module", params=["example", "new"])
def plugin(request, tmp_path_factory):
    """The example, and a fresh scaffold: (folder, distribution, technique, folder that it is installed in)."""
    base = tmp_path_factory.mktemp(request.param)
    folder = EXAMPLE if request.param == "example" else new_plugin("qplug-fresh-plugin", base)
    prefix = "example" if request.param == "example" else "fresh"
    pip_install(folder, base / "site")
    return folder, f"qplug-{prefix}-plugin", f"{prefix}.three_sigma", base / "site"


def test_it_is_listed_with_its_parameters(plugin):
    _, distribution, technique, site = plugin
    listed = qplug("plugins", "--json", path=site)
    assert listed.returncode == 0, listed.stderr
    assert distribution in listed.stdout
    described = qplug("techniques", technique, path=site)
    assert described.returncode == 0, described.stderr
    assert "standard deviations" in described.stdout


@pytest.mark.slow
def test_its_recipe_runs(plugin):
    folder, distribution, technique, site = plugin
    out = site.parent / "run"
    done = qplug("run", folder / "recipe.yaml", "--out", out, path=site)
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads((out / "plan.json").read_text())
    assert {decision["technique"] for decision in plan["decisions"]} == {technique}
    assert json.loads((out / "metrics.json").read_text())["quantized.agreement"] > 0.9  # measured: 0.94
    assert distribution in (out / "lock.json").read_text()


def test_a_wrong_parameter_is_refused_like_any_other(plugin):
    folder, *_, site = plugin
    recipe = site.parent / "wrong.yaml"
    recipe.write_text((folder / "recipe.yaml").read_text().replace("k: 3.0", "k: -1.0"))
    done = qplug("validate", recipe, path=site)
    assert done.returncode == 2
    assert "wrong.yaml:16" in done.stdout + done.stderr


@pytest.mark.slow
def test_its_own_tests_pass(plugin):
    folder, _, _, site = plugin
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=site.parent)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_it_uses_public_names_only():
    for path in EXAMPLE.rglob("*.py"):
        allowed = {"qplug", "qplug.testing"} if path.parent.name == "tests" else {"qplug"}
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            inside = {name for name in names if name.partition(".")[0] == "qplug"}
            assert inside <= allowed, f"{path.name} imports {inside - allowed}"


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """The plugin that the guide writes, installed: (folder, folder that it is installed in)."""
    base = tmp_path_factory.mktemp("guide")
    folder = new_plugin("qplug-mine", base)
    text = (ROOT / "docs" / "plugins.md").read_text()
    for name, code in re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", text, re.DOTALL):
        (folder / name).write_text(code)
    pip_install(folder, base / "site")
    return folder, base / "site"


@pytest.mark.slow
def test_the_plugin_of_the_guide_is_taken(guide):
    _, site = guide
    rows = json.loads(qplug("plugins", "--json", path=site).stdout)["plugins"]
    (row,) = (row for row in rows if row["name"] == "mine")
    assert row["error"] is None
    assert row["offers"] == [
        "dataset:mine_noise",
        "metric:mine.distance",
        "quantizer:mine.power_of_two",
        "technique:mine.shifts",
        "technique:mine.three_sigma",
    ]


@pytest.mark.slow
def test_the_contracts_of_the_guide_pass(guide):
    folder, site = guide
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=site.parent)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40


@pytest.mark.slow
def test_the_recipe_of_the_guide_runs(guide):
    folder, site = guide
    out = site.parent / "run"
    done = qplug("run", folder / "recipe.yaml", "--out", out, path=site)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["mine.distance"] > 0.0
    assert metrics["quantized.agreement"] > 0.98  # measured: 0.998
    assert "quantized weights in float32" not in done.stdout + done.stderr
