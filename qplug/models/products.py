"""Products, Softmax and functional layers of a recorded forward as modules, so that sites are found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn

from qplug.models import operands
from qplug.models.attention import MaskedSoftmax, MatMul
from qplug.models.functional_layers import LAYERS, Layer
from qplug.models.nodes import Pair, arguments, called, is_parameter, is_read_once, untransposed
from qplug.models.recording import Unreadable

PRODUCTS = frozenset("matmul bmm rmatmul baddbmm einsum scaled_dot_product_attention".split())
"""Names of the functions that multiply two activations."""
FUSED = "scaled_dot_product_attention"
HIDDEN = -50.0
"""A number that is added to a score hides it if it is below; a bias is above. Swin's masks are -100."""


@dataclass
class ExplicitGraph:
    """A graph whose products, Softmax and functional layers become modules.

    Attributes:
        module: whose forward was recorded.
        graph: recorded; changed in place. ``meta["values"]`` of its nodes is the value for one image and for three.
        modules: name → new module.
        moved: parameters that a new module holds now.
        left: what stays as it was, and why.
    """

    module: nn.Module
    graph: fx.Graph
    modules: dict[str, nn.Module] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    _made: dict[str, tuple[str, nn.Module]] = field(default_factory=dict)
    _weights: set[Any] = field(default_factory=set)

    def make(self) -> None:
        """Put modules in the place of functions."""
        roles = self._roles()
        self._weights = self._behind(self._softmaxes())
        for node in list(self.graph.nodes):
            name = called(node)
            if name == FUSED:
                self._attention(node)
            elif name in PRODUCTS:
                self._multiplication(node, roles.get(node, "matmul"))
            elif name == "softmax":
                self._softmax(node)
            elif name == "dropout":
                self._dropout(node)
            elif name in LAYERS:
                self._layer(node)
            elif name == "iadd" and is_read_once(node.args[0]):  # hooks may hold the output of a module
                node.op, node.target = "call_function", torch.add
            elif name == "view" and not isinstance(node.args[-1], torch.dtype):
                node.target = "reshape"  # a product of a module may lie in memory in another order
        self._name()
        self._clean()

    # -- which product is which

    def _softmaxes(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if called(node) == "softmax" or self._calls(node, nn.Softmax)]

    def _calls(self, node: fx.Node, kind: type[nn.Module]) -> bool:
        return node.op == "call_module" and isinstance(self.module.get_submodule(str(node.target)), kind)

    def _roles(self) -> dict[fx.Node, str]:
        """Product → its name: those before a Softmax, and those behind one."""
        roles: dict[fx.Node, str] = {}
        for softmax in self._softmaxes():
            for node in _walk([softmax], lambda node: node.users):
                roles.setdefault(node, "matmul_av")
        for softmax in self._softmaxes():
            for node in _walk([softmax], lambda node: node.all_input_nodes):
                roles[node] = "matmul_qk"
        return {node: role for node, role in roles.items() if called(node) in PRODUCTS}

    def _behind(self, nodes: list[fx.Node]) -> set[fx.Node]:
        """All nodes that read these ones, up to the next products."""
        return {*nodes, *_walk(nodes, lambda node: node.users)}

    # -- fused attention

    def _attention(self, node: fx.Node) -> None:
        query, key, value, mask, dropout, causal, scale, grouped = arguments(
            node, "query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"
        )
        pairs = [Pair.of(operand) for operand in (query, key, value)]
        if None in pairs or (dropout and not isinstance(dropout, (int, float))):
            return
        with self.graph.inserting_before(node):
            call = self.graph.call_function
            if grouped:
                key, value = (self._repeated(x, query) for x in (key, value))
            scores = self._product(call(operands.scaled, (query, scale)), key, True, "matmul_qk", (query, key))
            if scores is None:
                self._leave(node)
                return
            softmax: nn.Module = nn.Softmax(dim=-1)
            if causal or self._hides(mask):
                extra = call(operands.causal_mask, (scores,)) if causal else call(operands.additive_mask, (mask,))
                softmax = MaskedSoftmax(dim=-1)
                weights = self._new("softmax", softmax, scores, extra)
            else:
                scores = scores if mask is None else call(torch.add, (scores, mask))
                weights = self._new("softmax", softmax, scores)
            if dropout:
                weights = self._new("attn_dropout", nn.Dropout(dropout), weights)
            out = self._product(weights, value, False, "matmul_av", (query, value))
            if out is None:
                raise Unreadable("the values of its attention have no axis of images")
        self._replace(node, out)

    def _hides(self, mask: Any) -> bool:
        """Whether a mask hides scores. One of parameters is a bias, whatever its values: a run loads them later."""
        pair = Pair.of(mask)
        if pair is None or pair.one.dtype == torch.bool:
            return pair is not None
        sources = _walk([mask], lambda node: node.all_input_nodes) | {mask}
        return not any(map(is_parameter, sources)) and bool(pair.one.amin() < HIDDEN)

    def _repeated(self, x: fx.Node, query: fx.Node) -> fx.Node:
        node = self.graph.call_function(operands.repeat_heads, (x, query))
        node.meta["values"] = tuple(
            operands.repeat_heads(part, like) for part, like in zip(x.meta["values"], query.meta["values"], strict=True)
        )
        return node

    # -- products

    def _multiplication(self, node: fx.Node, role: str) -> None:
        with self.graph.inserting_before(node):
            name = called(node)
            if name == "einsum":
                out = self._einsum(node, role)
            elif name == "baddbmm":
                out = self._baddbmm(node, role)
            else:
                lhs, rhs = arguments(node, "input|self", "other|mat2|tensor2")
                out = self._matmul(*((rhs, lhs) if name == "rmatmul" else (lhs, rhs)), role)
        if out is None:
            self._leave(node)
        else:
            self._replace(node, out)

    def _leave(self, node: fx.Node) -> None:
        self.left.append(f"{called(node)}: its operands have no common axis of images")

    def _matmul(self, lhs: Any, rhs: Any, role: str) -> fx.Node | None:
        if Pair.of(lhs) is None or Pair.of(rhs) is None:
            return None
        if role == "matmul_av" and rhs in self._weights and lhs not in self._weights:
            # v·aᵀ = (a·vᵀ)ᵀ: the weights of attention are the left operand
            out = self._product(self._transposed(rhs), self._transposed(lhs), False, role)
            return None if out is None else self._swapped(out)
        flip = role == "matmul_qk" or untransposed(rhs) is not None
        return self._product(lhs, self._transposed(rhs) if flip else rhs, flip, role)

    def _baddbmm(self, node: fx.Node, role: str) -> fx.Node | None:
        added, lhs, rhs, beta, alpha = arguments(node, "input|self", "batch1", "batch2", "beta", "alpha")
        out = self._matmul(lhs, rhs, role)
        if out is None:
            return None
        factors = [1 if factor is None else factor for factor in (alpha, beta)]
        parts = [self.graph.call_function(torch.mul, pair) for pair in zip((out, added), factors, strict=True)]
        return self.graph.call_function(torch.add, tuple(parts))

    def _einsum(self, node: fx.Node, role: str) -> fx.Node | None:
        equation, *given = node.args
        given = list(given[0]) if given and isinstance(given[0], (list, tuple)) else given
        pairs = [Pair.of(operand) for operand in given]
        if len(given) != 2 or None in pairs or not isinstance(equation, str):
            return None
        lhs, rhs = (part.strip() for part in equation.partition("->")[0].partition(",")[::2])
        images = next((part[0] for part, pair in zip((lhs, rhs), pairs, strict=True) if pair and pair.has_images), "")
        form = operands.Contraction.of(equation, images) if images else None
        if form is None:
            return None
        letters, flip = astuple(form), role == "matmul_qk"
        right = operands.right_operand if flip else operands.transposed_right_operand
        lhs_node, rhs_node = (
            self._arranged(operands.left_operand, given[0], letters),
            self._arranged(right, given[1], letters),
        )
        out = self._product(lhs_node, rhs_node, flip, role)
        return None if out is None else self.graph.call_function(operands.contraction_result, (out, *given, *letters))

    def _arranged(self, function: Callable[..., Tensor], x: Any, letters: tuple[str, ...]) -> fx.Node:
        node = self.graph.call_function(function, (x, *letters))
        node.meta["values"] = tuple(function(value, *letters) for value in x.meta["values"])
        return node

    def _product(
        self, lhs: fx.Node, rhs: fx.Node, transposed: bool, role: str, like: tuple[fx.Node, fx.Node] | None = None
    ) -> fx.Node | None:
        """A product of the last two axes; ``like`` are nodes with the leading axes of the operands."""
        left, right = (Pair.of(node) for node in like or (lhs, rhs))
        if left is None or right is None or not (left.has_images or right.has_images):
            return None
        for pair, other in ((left, right), (right, left)):
            if min(pair.one.dim(), other.one.dim()) < 2 or (pair.has_images and pair.one.dim() < 3):
                return None
            if not pair.has_images and not (pair.is_constant and pair.one.dim() <= other.one.dim()):
                return None
        if left.three.shape[:-2] != right.three.shape[:-2]:
            whole = operands.common_axes(left.three, right.three)
            wide = [pair.three.shape[:-2] == whole for pair in (left, right)]
            lhs, rhs = (
                lhs if wide[0] else self.graph.call_function(operands.spread, (lhs, rhs)),
                rhs if wide[1] else self.graph.call_function(operands.spread, (rhs, lhs)),
            )
        return self._new(role, MatMul(transposed), lhs, rhs)

    def _transposed(self, node: fx.Node) -> fx.Node:
        """The node with its last two axes swapped."""
        return untransposed(node) or self._swapped(node)

    def _swapped(self, node: fx.Node) -> fx.Node:
        made = self.graph.call_method("transpose", (node, -2, -1))
        if "values" in node.meta:
            made.meta["values"] = tuple(value.transpose(-2, -1) for value in node.meta["values"])
        return made

    # -- Softmax and layers

    def _softmax(self, node: fx.Node) -> None:
        scores, dim, *rest = arguments(
            node, "input|self", "dim", *(["_stacklevel"] if node.target is torch.nn.functional.softmax else []), "dtype"
        )
        pair = Pair.of(scores)
        if (
            pair is None
            or not pair.has_images
            or pair.one.dim() < 2
            or not isinstance(dim, int)
            or isinstance(dim, bool)
        ):
            return
        with self.graph.inserting_before(node):
            call = self.graph.call_function
            if rest[-1] is not None:
                scores = self.graph.call_method("to", (scores, rest[-1]))
            if called(scores) == "masked_fill" and scores.args[2] == -math.inf:
                extra = call(operands.fill_mask, tuple(scores.args[:2]))
                out = self._new("softmax", MaskedSoftmax(dim), scores.args[0], extra)
            else:
                out = self._new("softmax", nn.Softmax(dim), scores)
        self._replace(node, out)

    def _dropout(self, node: fx.Node) -> None:
        x, probability, training = arguments(node, "input", "p", "training")
        if training is not False and isinstance(probability, float) and node.target is torch.nn.functional.dropout:
            with self.graph.inserting_before(node):
                out = self._new("dropout", nn.Dropout(probability), x)
            self._replace(node, out)

    def _layer(self, node: fx.Node) -> None:
        layer = Layer.of(self.module, node)
        if layer is None or layer.path in {other.target for other in self.graph.nodes if other.op == "call_module"}:
            return
        self.moved += layer.moved
        place = layer.path if layer.module is None else self._add(layer.name, layer.module)
        with self.graph.inserting_before(node):
            out = layer.call(self.graph, place, node)
        self._replace(node, out)

    # -- the graph

    def _new(self, role: str, module: nn.Module, *args: fx.Node) -> fx.Node:
        name = self._add(role, module)
        return self.graph.call_module(name, args)

    def _add(self, role: str, module: nn.Module) -> str:
        """A place for a module, named at last: names count in the order of the graph."""
        place = f"{len(self._made)}.{role}"
        self._made[place] = (role, module)
        return place

    def _name(self) -> None:
        called_modules = {node.target for node in self.graph.nodes if node.op == "call_module"}
        for node in self.graph.nodes:
            if node.op == "call_module" and node.target in self._made:
                role, module = self._made[str(node.target)]
                names = chain((role,), (f"{role}_{number}" for number in count(2)))
                free = next(name for name in names if self._is_free(name, called_modules))
                self.modules[free], node.target = module, free

    def _is_free(self, name: str, called_modules: set[Any]) -> bool:
        """Whether a new module may have this name; a Softmax that only another path of the forward calls gives way."""
        held = getattr(self.module, name, None)
        gives_way = held is None or name in self.moved or (type(held) is nn.Softmax and name not in called_modules)
        return gives_way and name not in self.modules

    def _replace(self, node: fx.Node, out: fx.Node) -> None:
        out.meta["values"] = node.meta.get("values")
        if node in self._weights:
            self._weights.add(out)
        node.replace_all_uses_with(out, delete_user_cb=lambda user: user is not out)
        self.graph.erase_node(node)

    def _clean(self) -> None:
        """Remove what only computes a value that nobody reads."""
        for node in reversed(list(self.graph.nodes)):
            reads = called(node) in (
                "getattr",
                "getitem",
                "transpose",
                "permute",
                "scaled",
                "size",
                "cat",
                "masked_fill",
            )
            if not node.users and (reads or node.op == "get_attr"):
                self.graph.erase_node(node)
        self.graph.lint()


def _walk(starts: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """The nodes that ``step`` reaches from these ones; products end the way, and are part of it."""
    found: set[fx.Node] = set()
    ahead = [node for start in starts for node in step(start)]
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead += step(node) if called(node) not in PRODUCTS else ()
    return found
