"""Recipes that would run code: outside the installed packages only with the user's word, and never anything else."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from recipe_toys import GOOD, registry

from qplug.core.errors import InputError, RecipeError
from qplug.models.imported import is_installed, resolve
from qplug.models.sources import ImportedModel
from qplug.recipe import Recipe, load_recipe

NET = """
import os, sys
from torch import nn
class Net(nn.Module): pass
def make(**_) -> nn.Module: return nn.Linear(2, 2)
def undeclared(): return nn.Linear(2, 2)
def declared_int() -> int: return 3
def leaves(): sys.exit(0)
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "some_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_net", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def installed(folder: Path, module: str, editable: bool = False) -> None:
    """Give ``module`` a distribution, as pip would."""
    info = folder / f"{module}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (info / "top_level.txt").write_text(f"{module}\n")
    if editable:
        (info / "direct_url.json").write_text(json.dumps({"url": folder.as_uri(), "dir_info": {"editable": True}}))


def load(folder: Path, target: str, kwargs: Any = None, **options: Any) -> Recipe:
    toys = registry()
    toys.models["import"] = ImportedModel
    path = folder / "recipe.yaml"
    more = f", kwargs: {json.dumps(kwargs)}" if kwargs else ""
    path.write_text(GOOD.replace("{source: named, name: vit}", f"{{source: import, target: '{target}'{more}}}"))
    return load_recipe(path, registry=toys, **options)


def refusal(folder: Path, target: str, kwargs: Any = None, **options: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, target, kwargs, **options)
    (problem,) = caught.value.problems
    assert problem.where == f"{folder / 'recipe.yaml'}:2:33"
    return f"{problem.what}\n{problem.fix}"


def test_code_of_the_working_folder_needs_the_users_word(folder: Path) -> None:
    said = refusal(folder, "some_net:make")
    assert "model.target: some_net:make is code from outside the installed packages; a run would execute it" in said
    assert "add --allow-code (in Python, allow_code=True), or add 'some_net' to the list 'trusted' in " in said
    assert str(folder / "config" / "qplug" / "config.toml") in said
    assert load(folder, "some_net:make", allow_code=True)
    assert load(folder, "some_net:make", allow_code=["other", "some_net"])
    refusal(folder, "some_net:make", allow_code=["some"])
    refusal(folder, "no_such_net:make")


NEVER = "os:system sys:exit builtins:eval builtins:exec subprocess:run pathlib:Path.unlink shutil:rmtree runpy:run_path"
NEVER += " posix:system importlib:import_module pickle:loads ctypes:CDLL"
BEHIND = "torch:os.system torch:os.popen torch:sys.exit torch:importlib.import_module torch:builtins.eval torch:Size"
BEHIND += " some_net:os.system some_net:number torch:Tensor torch.nn:functional"


@pytest.mark.parametrize("target", NEVER.split())
def test_pythons_own_library_is_never_called(folder: Path, target: str) -> None:
    with pytest.raises(RecipeError, match=r":2:33: model.target: expected a class of modules or a function"):
        load(folder, target, allow_code=True)


@pytest.mark.parametrize("target", BEHIND.split())
def test_only_modules_and_functions_are_called_whatever_leads_to_them(folder: Path, target: str) -> None:
    with pytest.raises(InputError, match=rf"{target} is .*: expected a class of modules or a function"):
        resolve(target)


def test_installed_models_need_no_word(folder: Path) -> None:
    for target in ("torch.nn:Identity", "timm:create_model", "timm.models.efficientnet:_gen_mobilenet_v1"):
        assert load(folder, target, {"variant": "mobilenetv1_100"})
    assert load(folder, "torchvision.models:resnet50", {"weights": None})


def test_installed_functions_that_run_anything_need_the_word(folder: Path) -> None:
    undeclared = "is a function that is not declared to return a torch.nn.Module"
    for target in ("torch.fx.graph_module:_exec_with_source", "torch:load", "torch.hub:load", "typer:run"):
        assert undeclared in refusal(folder, target)
    (folder / "evil").write_text("")
    for value in ("owner/repository", "https://host", "..\\evil", str(folder / "evil")):
        said = refusal(folder, "torchvision.models:resnet50", {"a": [{"b": value}]})
        assert "the name of a file or an address" in said


@pytest.mark.parametrize("editable", [False, True])
def test_what_is_installed_is_known_by_its_place(folder: Path, editable: bool) -> None:
    assert not is_installed("some_net")
    installed(folder, "some_net", editable)
    assert is_installed("some_net")
    assert load(folder, "some_net:make")
    assert load(folder, "some_net:Net")
    refusal(folder, "some_net:undeclared")
    refusal(folder, "some_net:declared_int")


def test_a_folder_in_front_of_an_installed_package_is_not_that_package(folder: Path) -> None:
    assert is_installed("typer")
    (folder / "ruff.py").write_text("raise SystemExit(0)")
    assert not is_installed("ruff")
    assert not is_installed("__main__")
    assert not is_installed("no_such_package")


@pytest.mark.parametrize("body", ["import sys; sys.exit(0)", "raise SystemExit", "raise GeneratorExit", "1 / 0"])
def test_a_module_that_ends_the_program_is_an_error(folder: Path, body: str) -> None:
    (folder / "script_net.py").write_text(body)
    with pytest.raises(InputError, match=r"script_net:make cannot be imported: .*(script_net.py:1|division by zero)"):
        resolve("script_net:make")


def test_a_target_that_ends_the_program_is_an_error(folder: Path) -> None:
    recipe = load(folder, "some_net:leaves", allow_code=True)
    with pytest.raises(InputError, match=r"leaves failed with \{\}: it raised SystemExit\(0\) in .*some_net.py:8"):
        ImportedModel(recipe.model).load()
