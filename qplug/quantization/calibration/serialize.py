"""Serialization of calibration statistics as named tensors, for the result cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qplug.core.text import listed
from qplug.core.types import Site
from qplug.quantization.calibration.calibrator import Calibration
from qplug.quantization.calibration.running_ranges import RunningRanges
from qplug.quantization.calibration.sample_rows import SampleRows
from qplug.quantization.calibration.samplers import ConvSampler, HeadSampler, OperationSampler

Shape = tuple[int, ...]


def calibration_state(calibration: Calibration) -> dict[str, Tensor]:
    """All statistics of ``collect`` by name, as views on the model's device; do not write to them.

    Raises:
        ValueError: a smoothing was applied, or nothing was collected.
    """
    _check_smoothings(calibration)
    parts = {name: _ranges_state(ranges) for name, ranges in calibration.ranges.items()}
    parts |= {name: sampler_state(sampler) for name, sampler in calibration.samplers.items()}
    return {f"{owner}/{name}": tensor for owner, part in parts.items() for name, tensor in part.items()}


def restore_calibration(calibration: Calibration, state: Mapping[str, Tensor]) -> None:
    """Load the statistics ``state`` into ``calibration`` bit for bit, instead of ``collect``.

    The tensors are copied to the model's device, so several calibrations can be restored from one state.

    Raises:
        ValueError: names or shapes do not match this model, these sites and this number of images; or a smoothing was
            applied. ``calibration`` is then unchanged.
    """
    _check_smoothings(calibration)
    parts: dict[str, dict[str, Tensor]] = {owner: {} for owner in (*calibration.ranges, *calibration.samplers)}
    for name, tensor in state.items():
        owner, _, part = name.rpartition("/")
        parts.setdefault(owner, {})[part] = tensor
    wrong = [owner for owner, part in parts.items() if _shapes(part) != _expected(calibration, owner, part)]
    if wrong:
        raise ValueError(f"the state is not of this model, these sites and images: it differs at {listed(wrong, 5)}")
    device = next(calibration.model.parameters()).device
    own = {o: {n: tensor.to(device, copy=True) for n, tensor in part.items()} for o, part in parts.items()}
    for name, ranges in calibration.ranges.items():
        _restore_ranges(ranges, own[name])
    for name, sampler in calibration.samplers.items():
        restore_sampler(sampler, own[name])


def _check_smoothings(calibration: Calibration) -> None:
    if any(ranges.smoothings for ranges in calibration.ranges.values()):
        raise ValueError("a state must be saved and restored before any smoothing")


def _ranges_state(ranges: RunningRanges) -> dict[str, Tensor]:
    state = {"low": ranges.low, "high": ranges.high, "total": ranges.total, "count": torch.tensor(ranges.count)}
    if ranges.heads is not None:
        state["head_low"], state["head_high"] = ranges.heads
    return state | {"image_low": ranges.image_low.values(), "image_high": ranges.image_high.values()}


def _restore_ranges(ranges: RunningRanges, state: Mapping[str, Tensor]) -> None:
    """Assign the tensors of ``state`` without copies."""
    ranges.low, ranges.high, ranges.total = state["low"], state["high"], state["total"]
    ranges.count = int(state["count"])
    if "head_low" in state:
        ranges.heads = (state["head_low"], state["head_high"])
    ranges.image_low.replace_rows(state["image_low"])
    ranges.image_high.replace_rows(state["image_high"])


def _rows(sampler: OperationSampler) -> dict[str, SampleRows]:
    """All rows of a sampler by name; a matmul also has right operands."""
    rows = {"inputs": sampler.inputs, "squares": sampler.squares}
    return {**rows, "others": sampler.others} if isinstance(sampler, HeadSampler) and sampler.is_matmul else rows


def sampler_state(sampler: OperationSampler) -> dict[str, Tensor]:
    """All rows as views; without a backward pass there are no ``squares``."""
    return {name: rows.values() for name, rows in _rows(sampler).items() if rows.length or name != "squares"}


def restore_sampler(sampler: OperationSampler, state: Mapping[str, Tensor]) -> None:
    """Assign the tensors of ``state`` without copies."""
    for name, rows in _rows(sampler).items():
        rows.replace_rows(state.get(name))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _length(tensors: Mapping[str, Tensor], name: str) -> int:
    return len(tensors[name]) if name in tensors and tensors[name].dim() else 0


def _expected(calibration: Calibration, owner: str, part: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The expected shapes of ``part``, the state of ``owner``; empty if ``owner`` is neither a site nor a module."""
    if owner in calibration.ranges:
        return _ranges_shapes(calibration.ranges[owner], _length(part, "image_low"))
    if owner not in calibration.samplers:
        return {}
    sites: dict[str, Site] = {site.role: site for site in calibration.sites if site.module == owner}
    module = calibration.model.get_submodule(owner)
    shapes = sampler_shapes(calibration.samplers[owner], module, sites, _length(part, "inputs"))
    return {name: shape for name, shape in shapes.items() if name != "squares" or name in part}


def _ranges_shapes(ranges: RunningRanges, count: int) -> dict[str, Shape]:
    """The shapes of a state with ``count`` minima of images; an image has several if a forward calls repeatedly."""
    site, calls = ranges.site, max(1, count // ranges.images)
    shapes: dict[str, Shape] = dict.fromkeys(("low", "high", "total"), (site.shape[site.channel_axis],))
    if site.head_axis is not None:
        shapes |= dict.fromkeys(("head_low", "head_high"), site.shape[site.head_axis :][:1])
    return shapes | {"count": ()} | dict.fromkeys(("image_low", "image_high"), (calls * ranges.images,))


def sampler_shapes(
    sampler: OperationSampler, module: nn.Module, sites: Mapping[str, Site], count: int
) -> dict[str, Shape]:
    """The shapes of a state with ``count`` rows, for the operation ``module`` with ``sites`` by role.

    - Tokens: (n, C) and (n, M); for a norm (n, C) twice.
    - Patches: (n, C, kh, kw) and (n, M).
    - Heads: (s, H, r, K), the complete right operand and (s, H, r, M); for a Softmax (s, H, r, K) twice, H optional.
    """
    if isinstance(sampler, HeadSampler):
        site = sites["lhs" if sampler.is_matmul else "input"]
        axes = -2 if site.head_axis is None else -3
        *heads, tokens, width = (1, *site.shape)[axes:]  # a Softmax of vectors has one row an image
        inputs = (count, *heads, min(sampler.rows, tokens), width)
        if not sampler.is_matmul:
            return {"inputs": inputs, "squares": inputs}
        others = (count, *sites["rhs"].shape[axes:])
        outputs = (*inputs[:-1], others[-2 if sampler.transpose_rhs else -1])
        return {"inputs": inputs, "others": others, "squares": outputs}
    if isinstance(sampler, ConvSampler):
        assert isinstance(module, nn.Conv2d)
        patches = (count, module.in_channels, *module.kernel_size)
        return {"inputs": patches, "squares": (count, module.out_channels)}
    if isinstance(module, nn.Linear):
        return {"inputs": (count, module.in_features), "squares": (count, module.out_features)}
    return dict.fromkeys(("inputs", "squares"), (count, sites["input"].shape[-1]))
