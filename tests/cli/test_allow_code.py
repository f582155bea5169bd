"""``--allow-code`` and the modules that the user trusts, in every command that would run the code of a recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from recipe_toys import GOOD, registry

from qplug.cli import main
from qplug.models.sources import ImportedModel

Output = pytest.CaptureFixture[str]
BODY = "open('RAN', 'w').close()\nfrom torch import nn\ndef make(): return nn.Linear(2, 2)\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toys = registry()
    toys.models["import"] = ImportedModel
    monkeypatch.setattr("qplug.hooks.registry.installed", lambda: toys)
    monkeypatch.setattr("qplug.recipe.load.installed", lambda: toys)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stray_net.py").write_text(BODY)
    recipe = GOOD.replace("{source: named, name: vit}", "{source: import, target: 'stray_net:make'}")
    (tmp_path / "recipe.yaml").write_text(recipe)
    (tmp_path / "sweep.yaml").write_text("version: 1\ntitle: t\nrecipes: [{recipe: recipe.yaml}]\n")
    return tmp_path


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    "command",
    ["run recipe.yaml", "run recipe.yaml --json", "compare recipe.yaml", "compare sweep.yaml", "inspect recipe.yaml"],
)
def test_code_of_a_recipe_does_not_run_unasked(command: str, place: Path, capsys: Output) -> None:
    assert call(*command.split()) == 2
    said = capsys.readouterr().err
    assert "recipe.yaml:2:33: model.target: stray_net:make is code from outside the installed packages" in said
    assert "add --allow-code" in said
    assert not (place / "RAN").exists()


def test_validate_runs_nothing_and_says_what_a_run_needs(place: Path, capsys: Output) -> None:
    assert call("validate", "recipe.yaml") == 0
    said = capsys.readouterr().out
    assert "ok (toy.split, toy.ranges; a run needs --allow-code, because it executes stray_net)" in said
    assert not (place / "RAN").exists()


@pytest.mark.parametrize("way", ["option", "configuration"])
def test_the_users_word(way: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(recipe: object, **_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "qplug.pipeline.run", SimpleNamespace(run=run))
    options = ["--allow-code"] if way == "option" else []
    if way == "configuration":
        (place / "config" / "qplug").mkdir(parents=True)
        (place / "config" / "qplug" / "config.toml").write_text(f"trusted = {json.dumps(['stray_net'])}\n")
    assert call("run", "recipe.yaml", "--out", "out", *options) == 130  # the recipe was taken, and its run begun
