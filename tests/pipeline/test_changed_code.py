"""A run is loaded by the code that made it: other code is refused by name, with versions, files and what to do."""

from __future__ import annotations

import copy
import importlib
import shutil
import sys
from pathlib import Path

import pytest
import torch
from run_toys import relocked

import qplug
from qplug import InputError
from qplug.hooks.registry import Plugin, Registry
from qplug.pipeline.read_run import read_run
from qplug.testing import toy_images, toy_registry

MODULE = "mine_of_the_test"
CODE = '''
"""A plugin of one technique and one quantizer."""

from typing import Literal

import torch

from qplug import Config, Quantizer, QuantizerChoice, Technique, hookimpl


class Floats(Quantizer):
    kind = "mine.floats"

    def __init__(self, limit, bits):
        super().__init__()
        self.bits = bits
        self.register_buffer("limit", torch.as_tensor(limit))

    def forward(self, x):
        return x.clamp(-self.limit, self.limit) * 1.0

    def to_dict(self):
        return {"kind": self.kind, "bits": self.bits, "limit": self.limit.item()}

    @classmethod
    def from_dict(cls, data):
        return cls(data["limit"], data["bits"])


class Mine(Technique):
    class Config(Config):
        use: Literal["mine.floats"] = "mine.floats"

    @hookimpl
    def qplug_make_quantizer(self, site, spec, stats):
        return None if site.kind.is_weight else QuantizerChoice(Floats(stats.sample.abs().max(), spec.bits))
'''
RECIPE = """
version: 1
model: {source: toy}
data: {calibration: {source: toy, split: train}, evaluation: {source: toy, split: test, images: 5}}
quantize: {weights: {bits: 4}, activations: {bits: 4}}
techniques: [{use: mine.floats}, {use: toy.minmax}]
"""


def registry_of(version: str = "0.1.0") -> Registry:
    mine = importlib.import_module(MODULE)
    plugin = Plugin("mine", "qplug-mine", version, MODULE)
    registry = copy.copy(toy_registry(mine.Mine))
    registry.plugins = [*registry.plugins, plugin]
    registry.quantizers = {**registry.quantizers, "mine.floats": f"{MODULE}:Floats"}
    owned = {"technique:mine.floats": plugin, "quantizer:mine.floats": plugin}
    registry.owners = {**registry.owners, **owned}
    return registry


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / f"{MODULE}.py"
    path.write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by the plugin as it is here, not to be changed."""
    path = tmp_path_factory.mktemp("made")
    (path / "recipe.yaml").write_text(RECIPE)
    (path / f"{MODULE}.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path)
        registry = registry_of()
        qplug.run(qplug.load_recipe(path / "recipe.yaml", registry=registry), out=path / "run", registry=registry)
    return path / "run"


@pytest.fixture
def folder(tmp_path: Path, made: Path, source: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def edited(source: Path, old: str, new: str) -> None:
    """Edit the plugin, and import it anew."""
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    sys.modules.pop(MODULE, None)
    importlib.invalidate_caches()


def refusal(folder: Path, registry: Registry, **options: bool) -> InputError:
    with pytest.raises(InputError) as caught:
        qplug.load_quantized(folder, registry=registry, **options)
    return caught.value


def test_the_lock_names_the_plugin_its_version_and_its_files(folder: Path) -> None:
    lock = read_run(folder).lock
    record = lock.code[MODULE]
    assert (record.distribution, record.version, record.loads) == ("qplug-mine", "0.1.0", True)
    assert list(record.files) == [f"{MODULE}.py"]
    assert lock.code["qplug"].version == qplug.__version__
    assert len(lock.code["qplug"].files) > 100


def test_changed_code_of_a_plugin_is_refused(folder: Path, source: Path) -> None:
    before = qplug.load_quantized(folder, registry=registry_of())(toy_images(2))
    edited(source, "* 1.0", "* 0.5")
    error = refusal(folder, registry_of("0.2.0"))
    assert (
        f"the code of {MODULE} (qplug-mine) is not that of the run: 0.1.0 in the run, 0.2.0 now; "
        f"1 of 1 files differ: {MODULE}.py" in error.what
    )
    for word in ("install the versions of the run", "qplug verify", "changed_code=True", "--changed-code"):
        assert word in error.fix
    after = qplug.load_quantized(folder, registry=registry_of("0.2.0"), changed_code=True)(toy_images(2))
    assert not torch.equal(before, after)


def test_a_plugin_that_only_measures_may_change(folder: Path, source: Path) -> None:
    lock = read_run(folder).lock
    other = {name: record.model_dump() for name, record in lock.code.items()}
    other["elsewhere"] = {**other[MODULE], "digest": "0", "loads": False}
    relocked(folder, code=other)
    qplug.load_quantized(folder, registry=registry_of())


def test_an_uninstalled_plugin_is_named_with_the_version_of_the_run(folder: Path) -> None:
    error = refusal(folder, toy_registry())
    assert "the run used qplug-mine 0.1.0 (plugin 'mine'), which is not installed now" in error.what
    assert "pip install 'qplug-mine==0.1.0'" in error.fix
    assert "remove" not in str(error)


def test_a_plugin_that_only_brought_the_data_is_named_too(folder: Path) -> None:
    lock = read_run(folder).lock
    code = {name: record.model_dump() for name, record in lock.code.items()}
    relocked(folder, code={**code, MODULE: {**code[MODULE], "loads": False}})
    assert "the run used qplug-mine 0.1.0" in refusal(folder, toy_registry()).what


def test_a_broken_plugin_is_named_with_its_reason(folder: Path) -> None:
    registry = copy.copy(toy_registry())
    registry.plugins = [*registry.plugins, Plugin("mine", "qplug-mine", "0.3", MODULE, error="ImportError: no scipy")]
    assert "which cannot be used now: ImportError: no scipy" in refusal(folder, registry).what


def test_a_plan_that_a_newer_quantizer_does_not_read_names_both_versions(folder: Path, source: Path) -> None:
    edited(source, 'data["limit"]', 'data["gamma"]')
    error = refusal(folder, registry_of("0.2.0"), changed_code=True)
    assert "quantizer 'mine.floats' of " in error.what
    assert "cannot be read: KeyError: 'gamma'; plugin mine: qplug-mine 0.1.0 in the run, 0.2.0 now" in error.what
    assert error.fix == "install qplug-mine==0.1.0"
    assert "remove" not in str(error)


def test_a_quantizer_that_loses_its_bits_is_refused(folder: Path, source: Path) -> None:
    edited(source, 'data["bits"]', "8")
    error = refusal(folder, registry_of(), changed_code=True)
    assert "expected 4 bits, received 8" in error.what
