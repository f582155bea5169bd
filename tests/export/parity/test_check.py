"""The parity check accepts rounding and nothing else. It refuses a wrong export and names the wrong place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from export_toys import toy_run
from onnx import numpy_helper

from qplug import ParityError
from qplug.core.types import MASKED
from qplug.export.formats.qdq_file import qdq_file
from qplug.export.parity.check import FREE_LOGITS_LIMIT, check_parity
from qplug.export.parity.differences import OutputDifference
from qplug.export.parity.fused import FUSED, limit_behind
from qplug.export.parity.refusal import refusal
from qplug.export.parity.result import FREE_RUN, TOP1, Parity
from qplug.export.runtimes import onnx_runtime
from qplug.export.runtimes.onnx_runtime import OnnxRuntime
from qplug.hooks.registry import backend_of, installed
from qplug.pipeline.load_run import load_planned, load_quantized
from qplug.testing import toy_images, toy_registry

# differences


def test_equal_values_agree():
    found = OutputDifference(1e-4)
    x = torch.randn(4, 6, 8)
    found.add(x, x.clone())
    assert (found.norm, found.off, found.largest, found.agrees) == (0.0, 0.0, 0.0, True)


def test_one_channel_that_is_wrong_is_enough():
    """However little it weighs: 1 % of one channel in a thousand is 3e-4 of the norm."""
    found = OutputDifference(1e-2)
    x = torch.randn(4, 50, 1000, generator=torch.Generator().manual_seed(0))
    wrong = x.clone()
    wrong[..., 7] *= 1.01
    found.add(x, wrong)
    assert 2e-4 < found.norm < 5e-4
    assert found.off > 0.98
    assert not found.agrees


def test_a_tie_that_rounded_the_other_way_agrees():
    """It changes all channels of one token of one image, by a step of one operand."""
    found = OutputDifference(1e-2)
    x = torch.randn(4, 50, 100, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[2, 13] += 0.02
    found.add(x, moved)
    assert found.off == pytest.approx(0.25)  # of the token's, over four images
    assert 1e-3 < found.norm < 2e-3
    assert found.agrees
    assert not OutputDifference(1e-4, noise=found.noise, signal=found.signal, _elements=found._elements).agrees


def test_nan_never_agrees():
    found = OutputDifference(1e-2)
    found.add(torch.ones(2, 3), torch.full((2, 3), torch.nan))
    assert not found.agrees
    assert found.largest == float("inf")


def test_masked_logits_are_not_compared():
    found = OutputDifference(1e-4)
    x = torch.tensor([[1.0, MASKED]])
    found.add(x, torch.tensor([[1.0, MASKED]]))
    assert found.norm == 0.0
    assert found.signal == 1.0


@pytest.mark.parametrize("theirs", [[1.0, 50.0], [1.0, torch.nan], [MASKED, MASKED]])
def test_a_value_that_one_side_alone_masks_is_wrong(theirs):
    found = OutputDifference(1e-2)
    found.add(torch.tensor([[1.0, MASKED]]), torch.tensor([theirs]))
    assert found.norm == float("inf")
    assert found.off == 1.0
    assert not found.agrees


def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"expected the simulation's shape \(2, 3\), received \(3, 2\)"):
        OutputDifference(1e-4).add(torch.zeros(2, 3), torch.zeros(3, 2))


# wrong exports


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    registry = toy_registry()
    run = toy_run(tmp_path_factory.mktemp("toy") / "run", registry=registry)
    planned = load_planned(run, registry)
    return planned, qdq_file(planned), load_quantized(run, registry=registry)


def judged(exported, change=None):
    planned, file, simulation = exported
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    if change is not None:
        change(model)
    with backend_of("brevitas", installed()).inference(simulation):
        return check_parity(
            OnnxRuntime(model, file.calls), simulation, planned.plan, [toy_images(4), toy_images(4, seed=1)]
        )


def constant(model: onnx.ModelProto, node: str, position: int) -> onnx.TensorProto:
    """An initializer of its own for one input of the node of that name."""
    (found,) = (one for one in model.graph.node if one.name == node)
    (shared,) = (one for one in model.graph.initializer if one.name == found.input[position])
    own = onnx.TensorProto()
    own.CopyFrom(shared)
    own.name = f"own.{found.name}.{position}"
    found.input[position] = own.name
    model.graph.initializer.append(own)
    return model.graph.initializer[-1]


def set_to(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), tensor.name))


def scaled(node: str, factor: float):
    def change(model: onnx.ModelProto) -> None:
        tensor = constant(model, node, 1)
        set_to(tensor, numpy_helper.to_array(tensor) * factor)

    return change


def scale_of_an_activation(model: onnx.ModelProto) -> None:
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        scaled(f"blocks.0.mlp.fc1.input/{kind}", 1.01)(model)


def scale_of_one_channel(model: onnx.ModelProto) -> None:
    tensor = constant(model, "blocks.1.mlp.fc2.weight/DequantizeLinear", 1)
    values = numpy_helper.to_array(tensor).copy()
    values[3] *= 1.01
    set_to(tensor, values)


def zero_points(model: onnx.ModelProto) -> None:
    """Those of two tensors, swapped."""
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        ours, theirs = (constant(model, f"blocks.1.attn.matmul_av.{role}/{kind}", 2) for role in ("lhs", "rhs"))
        before = numpy_helper.to_array(ours).copy()
        assert before == 0  # of probabilities
        assert numpy_helper.to_array(theirs) > 100
        set_to(ours, numpy_helper.to_array(theirs))
        set_to(theirs, before)


def axis(model: onnx.ModelProto) -> None:
    (node,) = (one for one in model.graph.node if one.name == "blocks.0.attn.proj.weight/DequantizeLinear")
    (attribute,) = node.attribute
    assert attribute.i == -1
    attribute.i = 0  # the weight is square


def left_in_float(model: onnx.ModelProto) -> None:
    (last,) = (one for one in model.graph.node if one.name == "blocks.0.attn.matmul_av.lhs/DequantizeLinear")
    (first,) = (one for one in model.graph.node if one.name == "blocks.0.attn.matmul_av.lhs/QuantizeLinear")
    for node in model.graph.node:
        node.input[:] = [first.input[0] if name == last.output[0] else name for name in node.input]


def norm_between(model: onnx.ModelProto) -> None:
    (node,) = (one for one in model.graph.node if one.name == "blocks.1.norm1/LayerNormalization")
    (epsilon,) = (one for one in node.attribute if one.name == "epsilon")
    epsilon.f = 0.1


@pytest.mark.slow
def test_a_right_export_agrees(exported):
    parity = judged(exported)
    assert parity.first_wrong is None
    assert parity.images == 8
    assert parity.batches == [1, 4]
    assert len(parity.places) == 2 * (2 * 4 + 2) + 3 * 4 + 1  # linears and the convolution, matmuls, the logits
    assert max(place.norm for place in parity.places.values()) < 1e-5  # measured: 4e-7
    outputs = {operation for operation, what in parity.places if what == "output"}
    assert outputs | {""} == set(parity.fused)
    assert max(one.limit for one in parity.fused.values()) < 6e-3  # measured: 5e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "place"),
    [
        (scale_of_an_activation, ("blocks.0.mlp.fc1", "output")),
        (scale_of_one_channel, ("blocks.1.mlp.fc2", "output")),
        (zero_points, ("blocks.1.attn.matmul_av", "output")),
        (axis, ("blocks.0.attn.proj", "output")),
        (left_in_float, ("blocks.0.attn.matmul_av", "output")),
        (norm_between, ("blocks.1.attn.qkv", "input")),
        (scaled("head.weight/DequantizeLinear", 1.01), ("head", "output")),
    ],
)
def test_a_wrong_export_is_refused_at_the_wrong_place(exported, change, place):
    parity = judged(exported, change)
    assert parity.first_wrong == place
    wrong = [where for where, difference in parity.places.items() if not difference.agrees]
    assert wrong == [place]  # the simulation continues from the runtime's values
    error = refusal(parity, exported[0])
    assert isinstance(error, ParityError)
    assert place[0] in error.where
    assert f"expected the simulation's {place[1]} for the same operands" in error.what
    assert "--no-verify" in error.fix


# errors of the unchanged file alone


def free_only(factor, noise, agreeing, steady):
    """Every operation agrees; free logits are ``factor`` times the simulation's."""
    parity = Parity(rounding_noise=noise, images=16, agreeing=agreeing, steady=steady)
    logits = torch.randn(16, 10, generator=torch.Generator().manual_seed(0))
    parity.free = OutputDifference(limit_behind(FREE_LOGITS_LIMIT, noise), share=1.0)
    parity.free.add(logits, factor * logits)
    return parity


@pytest.mark.parametrize("noise", [0.0, 0.037, 0.25, 1.0])
def test_zeros_never_agree_however_noisy_the_model_is(noise):
    assert free_only(0.0, noise, 16, 16).first_wrong == ("", FREE_RUN)


def test_nothing_compared_is_no_agreement():
    with pytest.raises(ValueError, match="expected at least one compared image"):
        _ = Parity().first_wrong


def test_a_simulation_that_is_all_zero_has_no_signal_to_noise_ratio():
    parity = Parity(places={("", "logits"): OutputDifference(1e-4)}, images=1)
    parity.free = OutputDifference(1e-2)
    parity.free.add(torch.zeros(1, 3), torch.ones(1, 3))
    assert parity.summary()["logits_sqnr_db"] is None


def test_the_limit_of_free_logits_grows_with_noise_and_is_bounded():
    assert [limit_behind(0.01, noise) for noise in (0.0, 0.037, 0.25, 2.0)] == pytest.approx([0.01, 0.158, 0.5, 0.9])


@pytest.mark.parametrize(
    ("agreeing", "steady", "wrong"), [(16, 16, False), (12, 13, False), (9, 12, False), (7, 16, True), (1, 12, True)]
)
def test_top1_is_refused_if_noise_alone_would_keep_it(agreeing, steady, wrong):
    parity = free_only(1.0, 0.25, agreeing, steady)
    assert parity.first_wrong == (("", TOP1) if wrong else None)
    if wrong:
        message = f"which is for {steady} of 16 images, received it for {agreeing}"
        assert message in refusal(parity, None).what


@pytest.mark.slow
@pytest.mark.parametrize("off", [0.006, -0.006])
def test_a_kernel_that_is_wrong_only_if_fused_is_refused(exported, off, monkeypatch):
    """As if fc1 and its successor became one kernel unless fc1's output is returned."""
    showing, node = onnx_runtime._with_negated_outputs, "blocks.0.mlp.fc1"

    def fusing(model, names):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        if f"{node}.output" not in names:
            scaled(f"{node}.weight/DequantizeLinear", 1.0 + off)(wrong)
        return showing(wrong, names)

    monkeypatch.setattr(onnx_runtime, "_with_negated_outputs", fusing)
    parity = judged(exported)
    assert all(place.agrees for place in parity.places.values())
    assert parity.free.agrees
    assert parity.first_wrong == ("blocks.0.mlp.fc2", FUSED)
    assert "behind kernels that the runtime may fuse" in refusal(parity, exported[0]).what


@pytest.mark.slow
def test_a_file_that_is_wrong_only_unchanged_is_refused(exported, monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "logits", lambda self, x: torch.zeros(len(x), 5))
    parity = judged(exported)
    assert all(place.agrees for place in (*parity.places.values(), *parity.fused.values()))
    assert parity.first_wrong == ("", FREE_RUN)
    assert "each side running on its own" in refusal(parity, exported[0]).what
