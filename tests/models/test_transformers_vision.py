"""Image encoders of transformers: the same features as transformers, run folders that load alone, and errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from vision_toys import MODELS, SIZE, change_config, write_encoder, write_tokenizer

from qplug import load_quantized, run
from qplug.core.errors import InputError
from qplug.hooks.registry import installed
from qplug.models.transformers_vision import TransformersVisionModel
from qplug.recipe import recipe_type

FIELD = {"clip": "image_embeds", "sam": "last_hidden_state", "vit_classifier": "last_hidden_state"}
IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def source(folder: Path | str, **values: Any) -> TransformersVisionModel:
    config = {"source": "transformers_vision", "path": str(folder), "task": "features", **values}
    return TransformersVisionModel(TransformersVisionModel.Config(**config))


def refusal(folder: Path | str, **values: Any) -> InputError:
    with pytest.raises(InputError) as error:
        source(folder, **values).load()
    return error.value


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_transformers_and_restored_without_the_folder(tmp_path: Path, name: str) -> None:
    original = write_encoder(tmp_path / "model", name)
    made = source(tmp_path / "model")
    model = made.load()
    with torch.no_grad():
        features = model.module(IMAGES)
        if name == "clip":
            expected = original.get_image_features(pixel_values=IMAGES)
            expected = getattr(expected, "pooler_output", expected)
        elif name == "vit_classifier":
            expected = original.vit(IMAGES).last_hidden_state
        else:
            expected = original(IMAGES)[FIELD.get(name, "pooler_output")]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert model.task.name == "features"
    (tmp_path / "kept").mkdir()
    for file, text in made.files().items():
        (tmp_path / "kept" / file).write_text(text)
    again = made.kept_in(tmp_path / "kept").architecture()
    assert {k: v.shape for k, v in again.module.state_dict().items()} == {
        k: v.shape for k, v in model.module.state_dict().items()
    }
    assert repr(again.preprocessing) == repr(model.preprocessing)


def test_images_are_prepared_as_the_processor_does(tmp_path: Path) -> None:
    import transformers

    write_encoder(tmp_path, "vit")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    model = source(tmp_path).load()
    assert torch.equal(model.preprocessing.transform()(image)[None], expected)
    assert model.preprocessing.transform()(image.convert("L")).shape == (3, SIZE, SIZE)
    assert not model.preprocessing.whole_image


@pytest.mark.parametrize(("output", "shape"), [("first_token", (2, 16)), ("last_hidden_state", (2, 17, 16))])
def test_another_output_is_read(tmp_path: Path, output: str, shape: tuple[int, ...]) -> None:
    original = write_encoder(tmp_path, "dinov2")
    with torch.no_grad():
        features = source(tmp_path, output=output).load().module(IMAGES)
        tokens = original(IMAGES).last_hidden_state
    assert features.shape == shape
    torch.testing.assert_close(features, tokens[:, 0] if output == "first_token" else tokens)


def test_prompts_give_the_class_embeddings_of_the_text_tower(tmp_path: Path) -> None:
    original = write_encoder(tmp_path / "model", "clip")
    write_tokenizer(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a b c\nd e\nf\n")
    made = source(tmp_path / "model", prompts=str(tmp_path / "prompts.txt"))
    found = made.load().task.classes_by
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        texts = original.get_text_features(**tokenizer("d e", return_tensors="pt", padding="max_length"))
    expected = getattr(texts, "pooler_output", texts)[0]
    assert found.shape == (3, 12)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-5)
    (tmp_path / "kept").mkdir()
    for file, text in made.files().items():
        (tmp_path / "kept" / file).write_text(text)
    assert torch.equal(made.kept_in(tmp_path / "kept").architecture().task.classes_by, found)


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_class_embeddings_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    write_encoder(tmp_path, "vit")
    values, path = torch.randn(5, 16), tmp_path / f"classes.{suffix}"
    np.save(path, values.numpy()) if suffix == "npy" else save_file({"classes": values}, path)
    assert torch.equal(source(tmp_path, class_embeddings=str(path)).load().task.classes_by, values)


def test_bad_class_embeddings_are_named(tmp_path: Path) -> None:
    write_encoder(tmp_path, "vit")
    np.save(tmp_path / "flat.npy", np.zeros(4, dtype=np.float32))
    save_file({"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)}, tmp_path / "two.safetensors")
    (tmp_path / "words.txt").write_text("a\n\nb\n")
    assert (
        "expected finite numbers (classes, C), received (4,)"
        in refusal(tmp_path, class_embeddings=str(tmp_path / "flat.npy")).what
    )
    assert (
        "expected one tensor, received 2" in refusal(tmp_path, class_embeddings=str(tmp_path / "two.safetensors")).what
    )
    assert "in a .npy or .safetensors file" in refusal(tmp_path, class_embeddings=str(tmp_path / "words.txt")).what
    assert "does not exist" in refusal(tmp_path, class_embeddings="no.npy").what
    error = refusal(tmp_path, prompts=str(tmp_path / "words.txt"))
    assert (error.what, error.where) == (
        "an empty line would shift the labels of the classes after it",
        f"{tmp_path / 'words.txt'}:2",
    )
    (tmp_path / "words.txt").write_text("a\nb\n")
    assert (
        "prompts need the text tower of the same folder" in refusal(tmp_path, prompts=str(tmp_path / "words.txt")).what
    )
    with pytest.raises(ValidationError, match="both define the classes"):
        source(tmp_path, prompts="a.txt", class_embeddings="b.npy")


def test_folders_that_are_no_encoder_are_refused(tmp_path: Path) -> None:
    write_encoder(tmp_path / "vit", "vit")
    (tmp_path / "vit" / "preprocessor_config.json").rename(tmp_path / "elsewhere.json")
    assert "no preprocessor_config.json" in refusal(tmp_path / "vit").what
    sizes = {"input_size": (3, SIZE, SIZE), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    plain = {**sizes, "interpolation": "bicubic", "crop_pct": 1.0}
    assert source(tmp_path / "vit", preprocessing=plain).load().preprocessing.input_size == (3, SIZE, SIZE)
    shutil.copytree(tmp_path / "vit", tmp_path / "loose")
    (tmp_path / "elsewhere.json").rename(tmp_path / "loose" / "preprocessor_config.json")
    change_config(tmp_path / "loose", do_center_crop=False)
    assert "the processor gives images of several sizes" in refusal(tmp_path / "loose").what
    (tmp_path / "loose" / "model.safetensors").write_bytes(b"no")
    assert "weights cannot be read" in refusal(tmp_path / "loose").what
    (tmp_path / "loose" / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(tmp_path / "loose").what
    assert "the folder does not exist" in refusal(tmp_path / "nothing here").what


def test_text_models_are_no_image_encoders(small_language: Path) -> None:
    assert "no image encoder for a bert" in refusal(small_language / "bert-sequence_classification").what


def test_an_output_that_the_model_lacks_is_named(tmp_path: Path) -> None:
    write_encoder(tmp_path, "sam")
    model = source(tmp_path, output="pooler_output").load()
    with pytest.raises(InputError, match=r"returns no pooler_output; it returns last_hidden_state \(2, 8, 4, 4\)"):
        model.module(IMAGES)


@pytest.mark.slow
def test_a_run_folder_of_clip_gives_the_same_features(tmp_path: Path) -> None:
    write_encoder(tmp_path / "clip", "clip")
    data = {"source": "digits"}
    recipe = recipe_type(installed()).model_validate(
        {
            "version": 1,
            "model": {"source": "transformers_vision", "path": str(tmp_path / "clip"), "task": "features"},
            "data": {
                "calibration": {**data, "split": "train", "images": 4},
                "evaluation": {**data, "split": "test", "images": 8},
                "batch_size": 4,
            },
            "quantize": {"weights": {"bits": 8}, "activations": {"bits": 8}},
            "techniques": [{"use": "baseline.hessian"}],
        }
    )
    result = run(recipe, out=tmp_path / "run")
    assert result.metrics["coverage.macs"] == 1.0
    assert result.metrics["quantized.cosine"] > 0.99
    assert result.metrics["score"] == "top1"
    shutil.rmtree(tmp_path / "clip")
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path / "run")(IMAGES), result.model(IMAGES))
