"""The plan is bit-exact in JSON, and a restored plan gives the same outputs."""

import copy
import json
from dataclasses import fields, replace

import pytest
import torch
from numeric_toys import calibrated

from qplug import Granularity, InputError, Plan, QuantSpec, Region, RegionQuantizer, Site, SiteKind, UniformQuantizer
from qplug.core.types import Change
from qplug.hooks.registry import installed
from qplug.quantization.backends.brevitas import BrevitasBackend
from qplug.quantization.plan import Decision
from qplug.quantization.plan_record import ChangeRecord, DecisionRecord, PlanRecord, SiteRecord, SpecRecord
from qplug.testing import toy_images


@pytest.fixture(scope="module")
def planned():
    """The toy, and a plan with every kind of quantizer."""
    model, found, calibration = calibrated()
    plan = Plan(
        changes=[Change("blocks.0.norm1", "toy.a", True, "µ")], float_sites={"head.input": "override 'head.input'"}
    )
    for site in found.sites:
        if site.name == "head.input":
            continue
        spec = QuantSpec(4, Granularity.PER_CHANNEL if site.kind.is_weight else Granularity.PER_TENSOR)
        if site.kind is SiteKind.QUERY:
            spec = replace(spec, granularity=Granularity.PER_HEAD, symmetric=False)
        stats = calibration.stats(site)
        quantizer = UniformQuantizer.from_range(*stats.range(spec.granularity), spec)
        if site.kind is SiteKind.POST_GELU:
            quantizer = RegionQuantizer(
                0.0515, (Region(-(1 << 30), 0, -3, 0), Region(0, 3, 0, 3), Region(32, 5, 0, 7)), 4
            )
        plan.decisions[site.name] = Decision(site, spec, quantizer, "toy.b", "because", "recipe")
    plan.total_macs, plan.float_macs = found.total_macs, found.float_macs(plan.decisions)
    plan.calls = {name: found.calls[name] for name in plan.modules()}
    return model, plan


def again(plan):
    return Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False)), installed().quantizers)


def test_both_ways_through_json_bit_by_bit(planned):
    _, plan = planned
    other = again(plan)
    assert json.dumps(other.to_dict()) == json.dumps(plan.to_dict())
    assert (other.changes, other.float_sites, other.float_macs) == (plan.changes, plan.float_sites, plan.float_macs)
    assert (other.total_macs, other.coverage) == (plan.total_macs, plan.coverage)
    assert other.calls == plan.calls
    assert list(other.decisions) == list(plan.decisions)
    for one, two in zip(plan, other, strict=True):
        assert (one.site, one.spec, one.technique, one.reason, one.bits_by) == (
            *(two.site, two.spec, two.technique, two.reason, two.bits_by),
        )
        assert type(one.quantizer) is type(two.quantizer)
        for name, buffer in one.quantizer.named_buffers():
            assert torch.equal(buffer, two.quantizer.get_buffer(name)), (one.site.name, name)


def test_a_restored_plan_gives_the_same_outputs(planned):
    model, plan = planned
    backend, images = BrevitasBackend(), toy_images(3)
    with torch.no_grad():
        outputs = [backend.apply(copy.deepcopy(model), p)(images) for p in (plan, again(plan))]
        assert torch.equal(*outputs)
        assert not torch.allclose(outputs[0], model(images), rtol=1e-3)


@pytest.mark.parametrize("format_", [0, 2, None, "1"])
def test_another_format_is_refused(planned, format_):
    with pytest.raises(InputError, match="this version reads format 1"):
        Plan.from_dict({**planned[1].to_dict(), "format": format_}, installed().quantizers)


def test_an_unknown_quantizer_is_refused_by_name(planned):
    with pytest.raises(InputError, match=r"'regions'.* installed plugins offer.*\['uniform'\]"):
        Plan.from_dict(planned[1].to_dict(), {"uniform": "qplug.quantization.quantizers:UniformQuantizer"})


def test_quantizers_by_operation(planned):
    _, plan = planned
    assert set(plan.of("blocks.0.attn.matmul_qk")) == {"lhs", "rhs"}
    assert set(plan.of("head")) == {"weight"}
    assert plan.of("head")["weight"] is plan.decisions["head.weight"].quantizer
    modules = plan.modules()
    assert len(modules) == len(set(modules))
    assert modules.index("patch_embed.proj") == 0


def test_coverage_counts_operations_with_two_quantized_operands(planned):
    _, plan = planned
    assert plan.float_macs == {"head": 16 * 5}
    assert plan.coverage == 1 - 80 / plan.total_macs
    assert Plan().coverage == 0.0
    assert again(Plan(total_macs=80, unknown={"body": "aten._fft_r2c"})).coverage is None


def weight_of(data):
    return next(row for row in data["decisions"] if row["quantizer"]["kind"] == "uniform" and row["site"]["macs"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 10**30}, "less than or equal to 16"),
        ({"bits": 1}, "greater than or equal to 2"),
        ({"bits": True}, "valid integer"),
        ({"scale": float("nan")}, "scale is not finite"),
        ({"scale": float("inf")}, "scale is not finite"),
        ({"scale": 10**400}, "OverflowError"),
        ({"scale": 0.0}, "expected positive scales"),
        ({"scale": -0.5}, "expected positive scales"),
        ({"scale": "half"}, "cannot be read"),
        ({"scale": [1.0]}, "scales of shape (1,) do not fit a weight of"),
        ({"scale": [[1.0], [1.0]]}, "do not fit a weight of"),
        ({"scale": [[1.0], [1.0, 2.0]]}, "cannot be read"),
        ({"zero_point": float("nan")}, "zero_point is not finite"),
        ({"signed": None, "kind": "regions"}, "KeyError"),
    ],
)
def test_values_that_no_run_writes_are_refused(planned, values, message):
    data = planned[1].to_dict()
    weight_of(data)["quantizer"].update(values)
    with pytest.raises(InputError) as caught:
        Plan.from_dict(data, installed().quantizers)
    assert message in str(caught.value)


@pytest.mark.parametrize("scale", [[1.0] * 5, [[1.0, 2.0]] * 7, [[[[[1.0]]]]]])
def test_scales_that_do_not_broadcast_with_an_activation_are_refused(planned, scale):
    data = planned[1].to_dict()
    row = next(row for row in data["decisions"] if row["site"]["role"] == "input")
    row["quantizer"].update(scale=scale)
    with pytest.raises(InputError, match=f"quantizer 'uniform' of {row['site']['name']} cannot be read"):
        Plan.from_dict(data, installed().quantizers)


@pytest.mark.parametrize(
    ("record", "kind", "more"),
    [
        (SiteRecord, Site, set()),
        (SpecRecord, QuantSpec, set()),
        (DecisionRecord, Decision, set()),
        (ChangeRecord, Change, set()),
        (PlanRecord, Plan, {"format"}),
    ],
)
def test_what_is_checked_is_what_is_written(record, kind, more):
    assert set(record.model_fields) == {field.name for field in fields(kind)} | more
