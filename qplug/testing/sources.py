"""The contracts of data sources and of model sources."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from qplug.core.component import DataSource, ModelSource
from qplug.core.errors import InputError
from qplug.core.examples import Annotation, Examples
from qplug.core.storage.hashing import fingerprint
from qplug.hooks.torch_state import torch_state_kept
from qplug.models.adapters import ADAPTERS, make_explicit
from qplug.models.float_model import FloatModel, Preprocessing
from qplug.quantization.sites import find_sites
from qplug.testing.component import ComponentContract

LOOKED_AT = 8
"""Examples of a data source that are decoded; of the others only what costs nothing is read."""


class DataSourceContract(ComponentContract):
    """Subclass it in a plugin's tests::

        class TestMine(DataSourceContract):
            source = MySource
            configs = ({"split": "train"}, {"split": "test", "images": 4})

    Every check runs once for each of ``configs``, the keys of a recipe's ``data`` without ``source``.
    """

    source: ClassVar[type[DataSource]]

    def component(self) -> type[DataSource]:
        """The data source."""
        return self.source

    def open(self, parameters: Mapping[str, Any], seed: int = 0) -> Examples:
        """The examples, as a run opens them."""
        examples: Examples = self.make(parameters).open(seed)
        return examples

    def test_it_has_examples(self, parameters: Mapping[str, Any]) -> None:
        """An item and its label for each index; the label alone is the same one.

        A source of calibration images may have no labels: then it gives ``None``, and ``label`` raises ``InputError``.
        """
        examples = self.open(parameters)
        assert len(examples) >= 1, f"{self.source.name()}: no examples; raise InputError where there are none"
        for index in _some(examples):
            where, answer = f"{self.source.name()}, example {index}", examples[index]
            assert isinstance(answer, tuple), f"{where}: expected (item, label), got {type(answer).__name__}"
            assert len(answer) == 2, f"{where}: expected (item, label), got {len(answer)} values"
            item, label = answer
            assert item is not None, f"{where}: the item is None"
            alone = _label_alone(examples, index)
            assert label == alone, f"{where}: the label is {label!r}, and label({index}) is {alone!r}"
            if label is not None:
                _check_label(label, where)

    def test_images_can_be_prepared(self, parameters: Mapping[str, Any]) -> None:
        """A PIL image becomes a tensor by the preprocessing of a model."""
        from PIL.Image import Image

        examples = self.open(parameters)
        transform = Preprocessing((3, 16, 16), (0.5,) * 3, (0.25,) * 3, "bilinear", 1.0).transform()
        for index in _some(examples):
            item = examples[index][0]
            if not isinstance(item, Image):
                continue  # the item of another task
            where = f"{self.source.name()}, example {index}"
            assert not item.mode.startswith(("I", "F")), f"{where}: PIL mode {item.mode} has more than 8 bits a channel"
            prepared = transform(item)
            assert prepared.shape == (3, 16, 16), f"{where}: prepared, it has shape {tuple(prepared.shape)}"

    def test_examples_are_told_apart(self, parameters: Mapping[str, Any]) -> None:
        """By unique keys, and by their contents: calibration and evaluation may share none."""
        examples, name = self.open(parameters), self.source.name()
        keys = [examples.key(index) for index in range(len(examples))]
        assert all(isinstance(key, str) and key for key in keys), f"{name}: a key is a text, got {keys[:3]}"
        twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        assert not twice, f"{name}: {len(twice)} keys are not unique, such as {twice[0] if twice else ''!r}"
        sizes: dict[str, int] = {}
        for index in _some(examples):
            digest, size = examples.digest(index), examples.size_hint(index)
            assert re.fullmatch(r"[0-9a-f]{64}", str(digest)), (
                f"{name}, example {index}: digest must be a SHA-256 as 64 hexadecimal digits, got {digest!r}"
            )
            assert isinstance(size, int), f"{name}, example {index}: size_hint is {size!r}, no whole number"
            assert size >= 0, f"{name}, example {index}: size_hint is negative"
            assert sizes.setdefault(digest, size) == size, f"{name}: equal contents have different size_hints"

    def test_a_seed_gives_the_same_examples(self, parameters: Mapping[str, Any]) -> None:
        """Whatever else was drawn before; and every example is the same at every look."""
        name = self.source.name()
        first = self.open(parameters)
        torch.rand(3)
        again = self.open(parameters)
        assert _listed(first) == _listed(again), f"{name}: the same seed opens other examples"
        for index in _some(first):
            one, other = (_content(examples[index][0]) for examples in (first, again))
            assert one == other, f"{name}, example {index}: two looks at it give different content"

    def test_its_key_tells_what_it_opens(self, parameters: Mapping[str, Any]) -> None:
        """JSON values that are the same for the same examples, and others for others: caches believe them."""
        name, source = self.source.name(), self.make(parameters)
        keys = [_as_json(name, source.key(seed)) for seed in (0, 0, 1)]
        assert keys[0] == keys[1], f"{name}: key() is another one at every call"
        opened = [_listed(source.open(seed)) for seed in (0, 1)]
        assert opened[0] == opened[1] or keys[0] != keys[2], f"{name}: two seeds open other examples under one key()"

    def test_it_changes_nothing(self, parameters: Mapping[str, Any]) -> None:
        """Neither torch's settings nor the numbers that are drawn next."""
        state = torch.random.get_rng_state()
        with torch_state_kept() as changed:
            examples = self.open(parameters)
            _ = examples[0]
        assert not changed, f"{self.source.name()} changes {', '.join(changed)}, for everyone behind it"
        assert torch.equal(torch.random.get_rng_state(), state), (
            f"{self.source.name()} draws from torch's global generator; use one of its own, from the seed"
        )


class ModelSourceContract(ComponentContract):
    """Subclass it in a plugin's tests::

        class TestMine(ModelSourceContract):
            source = MySource
            configs = ({"name": "small"},)

    Every check runs once for each of ``configs``, the keys of a recipe's ``model`` without ``source``.
    """

    source: ClassVar[type[ModelSource]]

    def component(self) -> type[ModelSource]:
        """The model source."""
        return self.source

    def load(self, parameters: Mapping[str, Any]) -> FloatModel:
        """The model, as a run loads it."""
        loaded: FloatModel = self.make(parameters).load()
        return loaded

    def test_it_loads_a_model_that_is_ready(self, parameters: Mapping[str, Any]) -> None:
        """A ``FloatModel`` on the CPU, in eval mode and float32; ``FloatModel.of`` brings a module there."""
        name, loaded = self.source.name(), self.load(parameters)
        assert isinstance(loaded, FloatModel), f"{name}: expected a FloatModel, got {type(loaded).__name__}"
        module = loaded.module
        training = [path for path, one in module.named_modules() if one.training]
        assert not training, f"{name}: in training mode: {', '.join(training[:3]) or 'the model'}"
        state = module.state_dict()
        wrong = [key for key, value in state.items() if value.is_floating_point() and value.dtype != torch.float32]
        assert not wrong, f"{name}: {wrong[0]} is {state[wrong[0]].dtype}, not float32"
        away = [key for key, value in state.items() if value.device.type != "cpu"]
        assert not away, f"{name}: {away[0]} is on {state[away[0]].device}, not on the CPU"
        wanted = [key for key, parameter in module.named_parameters() if parameter.requires_grad]
        assert not wanted, f"{name}: {wanted[0]} asks for gradients"
        assert loaded.name, f"{name}: the model has no name"
        assert loaded.fingerprint == fingerprint(state), f"{name}: the fingerprint is not that of the state dict"

    def test_each_input_has_its_own_output(self, parameters: Mapping[str, Any]) -> None:
        """Finite, the same at every call, and whatever else is in the batch."""
        name, loaded = self.source.name(), self.load(parameters)
        one = loaded.preprocessing.example()
        other = one.flip(-1) if one.is_floating_point() else one
        with torch.no_grad():
            alone, together = loaded.module(one), loaded.module(torch.cat([one, other]))
            assert isinstance(alone, Tensor), f"{name}: the model returns a {type(alone).__name__}, no tensor"
            assert torch.equal(loaded.module(one), alone), f"{name}: two calls on the same input differ"
        assert len(together) == 2, f"{name}: two inputs give {len(together)} outputs"
        assert bool(alone.isfinite().all()), f"{name}: outputs are not finite"
        moved = float((together[:1] - alone).norm() / alone.norm().clamp_min(1e-12))
        assert moved < 1e-4, f"{name}: beside another input the output moves by {moved:.1e} of its norm"

    def test_something_can_be_quantized(self, parameters: Mapping[str, Any]) -> None:
        """It has linears, convolutions or attention that qplug knows."""
        loaded = self.load(parameters)
        model, example = copy.deepcopy(loaded.module), loaded.preprocessing.example()
        make_explicit(model, ADAPTERS, example)
        assert find_sites(model, example).sites, f"{self.source.name()}: the model has nothing that can be quantized"

    def test_images_become_its_inputs(self, parameters: Mapping[str, Any]) -> None:
        """Of any size and mode; and the ``repr`` of the preparation, which caches believe, holds no address."""
        from PIL import Image

        name, preparation = self.source.name(), self.load(parameters).preprocessing
        assert " at 0x" not in repr(preparation), f"{name}: the preparation's repr is another one in every process"
        example = preparation.example()
        assert torch.equal(example, preparation.example()), f"{name}: example() is another one at every call"
        if not isinstance(preparation, Preprocessing):
            return  # what it prepares are no images
        for mode, size in (("RGB", (20, 30)), ("L", (300, 200)), ("RGBA", (9, 9))):
            prepared = preparation.transform()(Image.new(mode, size))
            assert prepared.shape == example.shape[1:], (
                f"{name}: a {mode} image of {size} becomes {tuple(prepared.shape)}, not {tuple(example.shape[1:])}"
            )

    def test_it_is_the_same_model_every_time(self, parameters: Mapping[str, Any]) -> None:
        """And ``key``, which caches believe, says so in JSON values."""
        name = self.source.name()
        first, second = (self.load(parameters).fingerprint for _ in range(2))
        assert first == second, f"{name}: two loads give different weights"
        keys = [_as_json(name, self.make(parameters).key()) for _ in range(2)]
        assert keys[0] == keys[1], f"{name}: key() is another one at every call"

    def test_a_run_folder_brings_it_back(self, parameters: Mapping[str, Any]) -> None:
        """From ``files`` in a folder, ``architecture`` makes the model; the weights are put into it."""
        name, source, loaded = self.source.name(), self.make(parameters), self.load(parameters)
        with tempfile.TemporaryDirectory() as folder:
            for file, text in source.files().items():
                assert Path(file).name == file, f"{name}: files() gives '{file}', which is no name of a file"
                assert file != "plan.json", f"{name}: files() gives 'plan.json', which is the run's own"
                (Path(folder) / file).write_text(text, encoding="utf-8")
            try:
                again = source.kept_in(Path(folder)).architecture()
            except InputError as error:
                raise AssertionError(f"{name}: architecture() fails beside a run folder's files: {error}") from error
        shapes = [{key: value.shape for key, value in one.module.state_dict().items()} for one in (loaded, again)]
        assert shapes[0] == shapes[1], f"{name}: architecture() has other tensors than load()"
        again.module.load_state_dict(loaded.module.state_dict())
        example = loaded.preprocessing.example()
        with torch.no_grad():
            same = torch.equal(again.module(example), loaded.module(example))
        assert same, f"{name}: architecture() computes something else with the same weights"
        assert repr(again.preprocessing) == repr(loaded.preprocessing), f"{name}: architecture() prepares otherwise"

    def test_it_changes_nothing(self, parameters: Mapping[str, Any]) -> None:
        """Neither torch's settings nor the numbers that are drawn next."""
        with torch_state_kept():  # a first import may change settings, which is no fault of the source
            self.load(parameters)
        state = torch.random.get_rng_state()
        with torch_state_kept() as changed:
            self.load(parameters)
        assert not changed, f"{self.source.name()} changes {', '.join(changed)}, for everyone behind it"
        assert torch.equal(torch.random.get_rng_state(), state), (
            f"{self.source.name()} draws from torch's global generator: what is drawn next depends on it"
        )


def _some(examples: Examples) -> list[int]:
    """The first few indices, and the last."""
    count = len(examples)
    return sorted({*range(min(LOOKED_AT - 1, count)), count - 1})


def _listed(examples: Examples) -> list[tuple[str, str]]:
    """What is told apart by name everywhere, and by content where it costs little."""
    some = set(_some(examples))
    return [(examples.key(i), examples.digest(i) if i in some else "") for i in range(len(examples))]


def _label_alone(examples: Examples, index: int) -> object:
    try:
        return examples.label(index)
    except InputError:
        return None


def _check_label(label: object, where: str) -> None:
    if isinstance(label, Annotation):
        _as_json(where, {"label": label.content()})
        return
    parts = label if isinstance(label, tuple) else (label,)
    whole = all(isinstance(part, int) and not isinstance(part, bool) for part in parts)
    assert whole, f"{where}: a label is a whole number or a pair of them, got {label!r}"
    assert len(parts) in (1, 2), f"{where}: a label is a whole number or a pair of them, got {label!r}"


def _content(item: Any) -> Any:
    """The pixels of an image, or the item itself."""
    return (item.mode, item.size, item.tobytes()) if hasattr(item, "tobytes") else item


def _as_json(name: str, key: object) -> str:
    assert isinstance(key, dict), f"{name}: key() must be a mapping, got {type(key).__name__}"
    try:
        return json.dumps(key, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{name}: key() holds what is no JSON value: {error}") from error
