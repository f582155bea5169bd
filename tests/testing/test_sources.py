"""The contracts of sources, on the core's own and on ways to be wrong."""

import io
import json
from importlib.util import find_spec
from typing import Literal

import pytest
import torch
from PIL import Image
from pydantic import Field
from torch import nn

import qplug
from qplug.data.digits import Digits
from qplug.data.folder import Folder
from qplug.data.hf import HuggingFace
from qplug.data.text import Text
from qplug.models.float_model import FloatModel
from qplug.models.sources import ImportedModel, TimmModel, ZooModel
from qplug.models.transformers import TransformersModel
from qplug.testing import DataSourceContract, ModelSourceContract
from qplug.testing.run import ToyData, ToyModel

# data sources


class TestDigits(DataSourceContract):
    source = Digits
    configs = ({"split": "test"}, {"split": "train", "images": 5})


class TestFolder(DataSourceContract):
    source = Folder

    @pytest.fixture(params=[None, 3], ids=["all", "three"])
    def parameters(self, request, tmp_path):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / name).mkdir()
            for index in range(4):
                Image.new("RGB", (5, 4 + index), (number, index, 0)).save(tmp_path / name / f"{index}.png")
        return {"path": str(tmp_path), "images": request.param}


class TestFolderWithoutLabels(DataSourceContract):
    source = Folder

    @pytest.fixture
    def parameters(self, tmp_path):
        for index in range(3):
            Image.new("RGB", (5, 4 + index), (index, 0, 0)).save(tmp_path / f"{index}.png")
        return {"path": str(tmp_path)}


class TestText(DataSourceContract):
    source = Text

    @pytest.fixture
    def parameters(self, tmp_path):
        rows = [json.dumps({"text": f"word {index}", "label": index % 2}) for index in range(6)]
        (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
        return {"path": str(tmp_path), "split": "train", "examples": 4}


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pip install 'qplug[hf]'")
class TestHuggingFace(DataSourceContract):
    source = HuggingFace

    @pytest.fixture
    def parameters(self, tmp_path):
        import pyarrow
        from pyarrow import parquet

        images = []
        for index in range(6):
            stream = io.BytesIO()
            Image.new("RGB", (4, 4), (index, 0, 0)).save(stream, "PNG")
            images.append({"bytes": stream.getvalue(), "path": None})
        table = pyarrow.table({"image": images, "label": [index % 3 for index in range(6)]})
        parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
        return {"path": str(tmp_path), "split": "train"}


class Noise(ToyData):
    """The right one, under another name."""

    class Config(qplug.Config):
        source: Literal["noise"] = "noise"
        split: Literal["train"] = Field("train", description="the only one")
        images: int = Field(4, description="number of images")


def noise(name, **methods):
    """Noise whose examples have other methods, or whose source has those that begin with ``source_``."""
    source = {key.removeprefix("source_"): value for key, value in methods.items() if key.startswith("source_")}
    own = {key: value for key, value in methods.items() if not key.startswith("source_")}

    def open(self, seed):
        examples = Noise.open(self, seed)
        examples.__class__ = type("Odd", (type(examples),), own)
        return examples

    return type(name, (Noise,), {"open": open, "__doc__": "Odd.", **source})


def drawn(self, index):
    return Image.new("RGB", (4, 4), tuple(torch.randint(0, 256, (3,)).tolist())), self.label(index)


WRONG_DATA = {
    "no examples": (noise("A", __len__=lambda self: 0), "it_has_examples", "noise: no examples"),
    "no label": (noise("B", __getitem__=lambda self, i: "x"), "it_has_examples", r"expected \(item, label\), got str"),
    "two labels": (noise("C", label=lambda self, i: torch.randint(99, ()).item()), "it_has_examples", "the label is"),
    "label of text": (noise("D", label=lambda self, i: "cat"), "it_has_examples", "a label is a whole number"),
    "sixteen bits": (
        noise("E", __getitem__=lambda self, i: (Image.new("I;16", (4, 4)), self.label(i))),
        "images_can_be_prepared",
        "PIL mode I;16 has more than 8 bits",
    ),
    "one key": (noise("F", key=lambda self, i: "same"), "examples_are_told_apart", "keys are not unique"),
    "another digest": (noise("G", digest=lambda self, i: "abc"), "examples_are_told_apart", "must be a SHA-256"),
    "sizes of one content": (
        noise("H", digest=lambda self, i: "0" * 64, size_hint=lambda self, i: i),
        "examples_are_told_apart",
        "equal contents have different size_hints",
    ),
    "no seed": (
        noise("I", source_open=lambda self, seed: Noise.open(self, int(torch.randint(999, ())))),
        "a_seed_gives_the_same_examples",
        "the same seed opens other examples",
    ),
    "new noise": (noise("J", __getitem__=drawn), "a_seed_gives_the_same_examples", "two looks at it"),
    "one key for all": (
        noise("K", source_key=lambda self, seed: {}),
        "its_key_tells_what_it_opens",
        "two seeds open other examples under one key",
    ),
    "a key of objects": (
        noise("L", source_key=lambda self, seed: {"x": object()}),
        "its_key_tells_what_it_opens",
        "no JSON value",
    ),
    "global draws": (noise("M", __getitem__=drawn), "it_changes_nothing", "draws from torch's global generator"),
    "settings": (
        noise("N", __getitem__=lambda self, i: torch.set_default_dtype(torch.float64)),
        "it_changes_nothing",
        "noise changes the default dtype",
    ),
}


@pytest.mark.parametrize("case", WRONG_DATA)
def test_the_suite_finds_what_is_wrong_with_data(case):
    source, test, message = WRONG_DATA[case]
    suite = type("Suite", (DataSourceContract,), {"source": source})()
    with pytest.raises(AssertionError, match=message):
        getattr(suite, f"test_{test}")(parameters={})


# model sources

SMALL = {"input_size": [1, 8, 8], "mean": [0.3], "std": [0.4], "interpolation": "bilinear", "crop_pct": 1.0}


class TestZoo(ModelSourceContract):
    source = ZooModel
    configs = ({"name": "vit_digits"}, {"name": "convmixer_digits"})


class TestTimm(ModelSourceContract):
    source = TimmModel
    configs = ({"name": "test_vit.r160_in1k", "num_classes": 7},)


class TestImport(ModelSourceContract):
    source = ImportedModel
    configs = ({"target": "train_toys:small", "preprocessing": {**SMALL, "crop_mode": "center"}},)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    pytest.importorskip("transformers", reason="pip install 'qplug[nlp]'")
    from text_toys import random_language

    return random_language(tmp_path_factory.mktemp("language"))


class TestTransformers(ModelSourceContract):
    source = TransformersModel

    @pytest.fixture(params=["sequence_classification", "question_answering"])
    def parameters(self, request, language):
        return {"path": str(language / f"bert-{request.param}"), "task": request.param, "max_length": 16}


class Small(qplug.ModelSource):
    """The right one."""

    class Config(qplug.Config):
        source: Literal["small"] = "small"

    def load(self):
        return ToyModel(ToyModel.Config()).load()


def small(name, change=None, **methods):
    """A source whose loaded model is changed, or that has other methods."""

    def load(self):
        loaded = Small.load(self)
        return (change(loaded) if change else None) or loaded

    return type(name, (Small,), {"load": load, "__doc__": "Odd.", **methods})


class Wrapped(nn.Module):
    """A model with something done to its output."""

    def __init__(self, module, after):
        super().__init__()
        self.module, self.after = module, after

    def forward(self, x):
        return self.after(self.module(x))


def after(function):
    return lambda loaded: FloatModel.of(Wrapped(loaded.module, function), "odd", loaded.preprocessing)


def unstable(loaded):
    with torch.no_grad():
        loaded.module.head.bias.add_(torch.rand(()))
    return FloatModel.of(loaded.module, "odd", loaded.preprocessing)


def of_another_size(self):
    loaded = Small.load(self)
    loaded.module.head = nn.Linear(16, 9)
    return loaded


WRONG_MODELS = {
    "a bare module": (small("A", lambda loaded: loaded.module), "it_loads_a_model_that_is_ready", "expected a FloatMo"),
    "training": (
        small("B", lambda one: one.module.train() and None),
        "it_loads_a_model_that_is_ready",
        "in training mode",
    ),
    "double": (small("C", lambda one: one.module.double() and None), "it_loads_a_model_that_is_ready", "not float32"),
    "gradients": (
        small("D", lambda one: one.module.requires_grad_(True) and None),
        "it_loads_a_model_that_is_ready",
        "asks for gradients",
    ),
    "another fingerprint": (
        small("E", lambda one: setattr(one, "fingerprint", "0" * 64)),
        "it_loads_a_model_that_is_ready",
        "the fingerprint is not that",
    ),
    "batch": (small("F", after(lambda x: x - x.mean(0))), "each_input_has_its_own_output", "beside another input"),
    "noise": (small("G", after(lambda x: x + torch.rand(()))), "each_input_has_its_own_output", "two calls"),
    "a tuple": (small("H", after(lambda x: (x,))), "each_input_has_its_own_output", "returns a tuple"),
    "infinite": (small("I", after(lambda x: x / 0)), "each_input_has_its_own_output", "outputs are not finite"),
    "nothing": (
        small("J", lambda one: FloatModel.of(nn.Flatten(), "odd", one.preprocessing)),
        "something_can_be_quantized",
        "nothing that can be quantized",
    ),
    "another model": (small("K", unstable), "it_is_the_same_model_every_time", "two loads give different weights"),
    "a key of objects": (
        small("L", key=lambda self: {"x": object()}),
        "it_is_the_same_model_every_time",
        "no JSON value",
    ),
    "another architecture": (
        small("M", architecture=of_another_size),
        "a_run_folder_brings_it_back",
        "has other tensors than load",
    ),
    "a path as a file": (
        small("N", files=lambda self: {"a/b": ""}),
        "a_run_folder_brings_it_back",
        "no name of a file",
    ),
    "global draws": (small("O", unstable), "it_changes_nothing", "draws from torch's global generator"),
    "settings": (
        small("P", lambda _: torch.set_num_threads(torch.get_num_threads() + 1)),
        "it_changes_nothing",
        "small changes the number of threads",
    ),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_the_suite_finds_what_is_wrong_with_models(case):
    source, test, message = WRONG_MODELS[case]
    threads = torch.get_num_threads()
    suite = type("Suite", (ModelSourceContract,), {"source": source})()
    with pytest.raises(AssertionError, match=message):
        getattr(suite, f"test_{test}")(parameters={})
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("contract", "source", "cases"),
    [(DataSourceContract, noise("Fine"), WRONG_DATA), (ModelSourceContract, small("Fine"), WRONG_MODELS)],
)
def test_a_source_that_nothing_is_wrong_with_passes(contract, source, cases):
    suite = type("Suite", (contract,), {"source": source})()
    for test in {test for _, test, _ in cases.values()}:
        getattr(suite, f"test_{test}")(parameters={})
