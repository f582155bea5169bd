"""Functional linears and convolutions of a recorded forward, as the modules that do the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from qplug.models.nodes import arguments, called, is_parameter, is_read_once

LAYERS: dict[str, type[nn.Module]] = {"linear": nn.Linear, "conv2d": nn.Conv2d}
"""Functional layers, and the modules that do the same."""
GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
"""Further arguments of a functional convolution, and their defaults."""


@dataclass
class Layer:
    """A functional layer, as a call of a module.

    Attributes:
        path: of the submodule whose weight it reads; empty if the weight is the module's own.
        name: of a new submodule.
        module: a new submodule with the module's own weight.
        moved: names of the parameters that the new submodule holds instead of the module.
        bias: what is added to the module's output.
    """

    path: str = ""
    name: str = ""
    module: nn.Module | None = None
    moved: tuple[str, ...] = ()
    bias: Any = None

    @classmethod
    def of(cls, owner: nn.Module, node: fx.Node) -> Layer | None:
        """The layer of ``node``, or ``None`` if its weight is not one parameter that nothing else reads."""
        kind = LAYERS[called(node)]
        names = ("input", "weight", "bias", *(GEOMETRY if kind is nn.Conv2d else ()))
        _, weight, bias, *geometry = arguments(node, *names)
        if not (is_parameter(weight) and is_read_once(weight)) or any(isinstance(part, fx.Node) for part in geometry):
            return None
        path, _, leaf = str(weight.target).rpartition(".")
        given = dict(zip(GEOMETRY, geometry, strict=False))
        own_bias = str(bias.target) if is_parameter(bias) and is_read_once(bias) else ""
        if path:
            return cls._of_submodule(owner, path, kind, bias, own_bias, given) if leaf == "weight" else None
        if any(isinstance(value, str) for value in given.values()):
            return None
        own_bias = "" if "." in own_bias else own_bias
        module = _with_parameters(kind, getattr(owner, leaf), getattr(owner, own_bias) if own_bias else None, given)
        name = leaf.removesuffix("weight").rstrip("_") or called(node)
        moved = (leaf, *([own_bias] if own_bias else []))
        return cls(name=name, module=module, moved=moved, bias=None if own_bias else bias)

    @classmethod
    def _of_submodule(
        cls, owner: nn.Module, path: str, kind: type[nn.Module], bias: Any, own_bias: str, given: dict[str, Any]
    ) -> Layer | None:
        layer = owner.get_submodule(path)
        if type(layer) is not kind or (given and not _same_geometry(layer, given)):
            return None
        if layer.bias is None:
            return cls(path, bias=bias)
        return cls(path) if own_bias == f"{path}.bias" else None

    def call(self, graph: fx.Graph, place: str, node: fx.Node) -> fx.Node:
        """The call of the module at ``place`` in the place of ``node``."""
        out = graph.call_module(place, (arguments(node, "input")[0],))
        if self.bias is None:
            return out
        bias = graph.call_method("reshape", (self.bias, (-1, 1, 1))) if called(node) == "conv2d" else self.bias
        return graph.call_function(torch.add, (out, bias))


def _same_geometry(conv: Any, given: dict[str, Any]) -> bool:
    if conv.padding_mode != "zeros":
        return False
    wanted = {name: default if given[name] is None else given[name] for name, default in GEOMETRY.items()}
    return all(_pair(wanted[name]) == _pair(getattr(conv, name)) for name in GEOMETRY)


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else value


def _with_parameters(kind: type[nn.Module], weight: Tensor, bias: Tensor | None, given: dict[str, Any]) -> nn.Module:
    """A module of ``kind`` with these very parameters."""
    module: Any
    if kind is nn.Linear:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    else:
        more: Any = {name: default if given[name] is None else given[name] for name, default in GEOMETRY.items()}
        inputs, sides = weight.shape[1] * more["groups"], (weight.shape[2], weight.shape[3])
        module = nn.Conv2d(inputs, weight.shape[0], sides, bias=bias is not None, device="meta", **more)
    module.weight, module.bias = weight, bias
    result: nn.Module = module
    return result
