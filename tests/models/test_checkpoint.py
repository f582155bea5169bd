"""Checkpoints: strict and safe loading, and short errors that name the problem."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from qplug.core.errors import InputError
from qplug.models.checkpoint import load
from qplug.models.checkpoint_file import read
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


def small(**more: torch.Tensor) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model of a convolution, a norm and a head, and another state of it."""
    from interface_toys import Net

    return Net(), {**Net(seed=1).state_dict(), **more}


def loaded(path: Path, content: object) -> tuple[torch.nn.Module, str]:
    """The small model with the weights of a file of ``content``, and the note on them."""
    model, _ = small()
    torch.save(content, path)
    return model, load(model, path, "small")


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s, o: {"state_dict_ema": s, "state_dict": o}, "state_dict_ema was loaded, and not state_dict"),
        (lambda s, o: {"model": o, "model_ema": s, "epoch": 3}, "model_ema was loaded, and not model"),
        (lambda s, o: {"ema": {"module": s}, "model": o}, "ema.module was loaded, and not model"),
        (lambda s, o: {"student": under("module.", o), "teacher": under("module.", s)}, "teacher was loaded, and not"),
        (lambda s, o: {"net": s, "optimizer": {"state": {0: {"exp_avg": s["head.bias"], "step": s["bn.bias"]}}}}, ""),
        (lambda s, o: {"state_dict": s, "callbacks": {"best": {"score": torch.ones(())}}, "epoch": 3}, ""),
        (lambda s, o: {"state_dict": {**s, "epoch": 3}}, "that are no tensors were left out: epoch"),
    ],
)
def test_the_state_that_was_chosen_is_said(tmp_path: Path, wrap, said: str) -> None:
    _, other = small()
    chosen = {key: value + 1 for key, value in other.items()}
    model, note = loaded(tmp_path / "w.pth", wrap(chosen, other))
    assert said in note
    assert (note == "") == (said == "")
    torch.testing.assert_close(model.state_dict(), chosen, rtol=0, atol=0)


def test_states_that_no_name_tells_apart_are_listed(tmp_path: Path) -> None:
    _, state = small()
    with pytest.raises(InputError, match="holds several states: a, b") as error:
        loaded(tmp_path / "w.pth", {"a": state, "b": state})
    assert "safetensors" in error.value.fix


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: under("model.", s), "the prefix 'model.' was removed"),
        (lambda s: under("module.backbone.", s), "the prefix 'backbone.' was removed"),
        (lambda s: under("_orig_mod.student.", s), "the prefix 'student.' was removed"),
        (lambda s: under("a.b.", s), "the prefix 'a.b.' was removed"),
        (
            lambda s: {**under("model.", s), "criterion.weight": torch.ones(4)},
            "and what lies beside it was left out: criterion.weight",
        ),
        (
            lambda s: {**under("student.", {k: v * 0 for k, v in s.items()}), **under("teacher.", s)},
            "the prefix 'teacher.' was removed",
        ),
        (
            lambda s: {("head." if key.startswith("head") else "backbone.") + key: v for key, v in s.items()},
            "the prefixes 'backbone.', 'head.' were removed",
        ),
        (
            lambda s: {key if key.startswith("head") else f"encoder.{key}": value for key, value in s.items()},
            "the prefixes 'encoder.' were removed",
        ),
    ],
)
def test_prefixes_of_other_programs_are_removed_and_said(tmp_path: Path, wrap, said: str) -> None:
    _, state = small()
    model, note = loaded(tmp_path / "w.pth", {"state_dict": wrap(state)})
    assert said in note
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_prefixes_that_leave_a_choice_are_not_guessed(tmp_path: Path) -> None:
    _, state = small()
    with pytest.raises(InputError, match=r"under several prefixes: 'one\.', 'two\.'"):
        loaded(tmp_path / "w.pth", {**under("one.", state), **under("two.", state)})
    with pytest.raises(InputError, match=r"1 of the file's \d+ tensors are unknown to it: extra.weight"):
        loaded(tmp_path / "w.pth", under("model.", {**state, "extra.weight": torch.ones(1)}))
    with pytest.raises(InputError, match=r"2 of its 9 tensors are missing: head\.weight, head\.bias") as error:
        loaded(tmp_path / "w.pth", under("backbone.", {k: v for k, v in state.items() if "head" not in k}))
    assert "the prefix 'backbone.' was removed" in error.value.what
    assert "without its classifier" in error.value.fix


@pytest.mark.parametrize(
    ("convert", "named"),
    [
        (lambda v: v.int(), "int32"),
        (lambda v: v > 0, "bool"),
        (lambda v: v.to(torch.complex64), "complex64"),
    ],
)
def test_numbers_of_another_kind_are_refused_by_name(tmp_path: Path, convert, named: str) -> None:
    _, state = small()
    with pytest.raises(InputError, match=f"tensors of the checkpoint hold another kind .*: conv.weight \\({named}"):
        loaded(tmp_path / "w.pth", {**state, "conv.weight": convert(state["conv.weight"])})


def test_floats_of_another_width_and_counters_of_any_kind_load(tmp_path: Path) -> None:
    _, state = small()
    halves = {key: value.half() for key, value in state.items()}
    model, note = loaded(tmp_path / "w.pth", halves)
    assert note == ""
    assert model.conv.weight.dtype == torch.float32


def test_a_header_that_names_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    part = '"conv.weight": {"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
    header = ("{" + ", ".join([part % (0, 4), part % (4, 8)]) + "}").encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(InputError, match=r"header names conv\.weight twice"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"head.weight": (7, 8), "head.bias": (7,)}, "let model.kwargs make a model of 7 classes"),
        ({"conv.weight": (8, 1, 4, 4)}, "trained with images of 1 channels: set model.preprocessing.input_size"),
    ],
)
def test_what_little_differs_is_named_with_its_setting(tmp_path: Path, changes, fix: str) -> None:
    model, state = small(**{key: torch.zeros(shape) for key, shape in changes.items()})
    model.num_classes = 4
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError) as error:
        load(model, tmp_path / "w.pth", "module:small", classes="let model.kwargs make a model of {} classes")
    assert fix in error.value.fix
