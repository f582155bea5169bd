"""Checkpoints: strict and safe loading, and short errors that name the problem."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from qplug.core.errors import InputError
from qplug.models.checkpoint import load, read
from qplug.models.float_model import FloatModel
from qplug.models.sources import TimmModel
from qplug.models.zoo import ZOO


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model("test_vit").state_dict()


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}]
)
@pytest.mark.parametrize("suffix", ["pth", "pt"])
def test_torch_files_and_their_wrappers_load(tmp_path: Path, state: dict, wrap, suffix: str) -> None:
    torch.save(wrap(state), tmp_path / f"w.{suffix}")
    model = timm.create_model("test_vit")
    assert load(model, tmp_path / f"w.{suffix}", "test_vit") == ""
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="a folder, not a file"):
        read(tmp_path)


def test_pickle_that_could_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": Payload()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="could run code: refused") as error:
        read(tmp_path / "w.pth")
    assert "safetensors" in error.value.fix


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_cut_and_foreign_files_are_refused(tmp_path: Path, state: dict, name: str) -> None:
    path = tmp_path / name
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="cannot be read"):
        read(path)
    path.write_text("not a checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"epoch": 3}, [1, 2]])
def test_file_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"holds no state dict|cannot be read"):
        read(tmp_path / "w.pth")


def test_another_architecture_is_counted_and_named(tmp_path: Path, state: dict) -> None:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="belongs to another architecture than test_vit2") as error:
        load(timm.create_model("test_vit2"), tmp_path / "w.safetensors", "test_vit2")
    assert "tensors are missing: " in str(error.value)
    assert "have another shape" in str(error.value) or "unknown to it" in str(error.value)
    assert error.value.fix == "it fits timm's test_vit"
    assert len(str(error.value).splitlines()) < 12


def test_another_number_of_classes_is_suggested(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit", num_classes=7).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="set num_classes: 7"):
        load(timm.create_model("test_vit"), tmp_path / "w.safetensors", "test_vit")


@pytest.mark.slow
def test_a_refused_checkpoint_does_not_change_the_model(tmp_path: Path, state: dict) -> None:
    model = timm.create_model("test_vit")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_file({key: value for key, value in state.items() if key != "norm.bias"}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"1 of its \d+ tensors are missing: norm.bias"):
        load(model, tmp_path / "w.safetensors", "test_vit")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, state: dict, value: float) -> None:
    state["blocks.0.attn.qkv.weight"][0, 0] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"NaN or infinite values, in blocks\.0\.attn\.qkv\.weight\n"):
        TimmModel(
            TimmModel.Config(source="timm", name="test_vit", checkpoint_path=str(tmp_path / "w.safetensors"))
        ).load()


def test_half_precision_becomes_float32() -> None:
    entry = ZOO["vit_digits"]
    model = FloatModel.of(entry.build().half(), "half", entry.preprocessing)
    assert all(value.dtype == torch.float32 for value in model.module.state_dict().values())


def test_batch_counter_may_be_missing_as_in_old_checkpoints(tmp_path: Path) -> None:
    state = {k: v for k, v in timm.create_model("test_resnet").state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    assert load(timm.create_model("test_resnet"), tmp_path / "w.safetensors", "test_resnet") == ""


def test_real_checkpoint_for_another_architecture_is_recognized(shared: Path) -> None:
    path = shared / "weights/vit_tiny_patch16_224.safetensors"
    with pytest.raises(InputError, match=r"150 have another shape|have another shape") as error:
        load(timm.create_model("vit_small_patch16_224"), path, "vit_small_patch16_224")
    assert "vit_tiny_patch16_224" in error.value.fix
