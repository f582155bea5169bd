"""Who reads what around BatchNorms: one traced forward, and one that follows the channels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qplug.models.interface import has_own_hooks
from qplug.models.tracing import Tracer, no_grad_forward


class Reads:
    """One traced forward: the input and the readers of each BatchNorm, and the readers of each operation.

    Attributes:
        operation: BatchNorm → the convolution or linear whose output is its input; ``None`` for any other input.
        direct: the BatchNorms that read that output as it is, not moved.
        followers: BatchNorm → the convolutions and linears that read its output.
        calls: number of calls of each BatchNorm and operation.
    """

    def __init__(self, model: nn.Module, norms: Mapping[str, nn.Module], image: Tensor) -> None:
        self.operation: dict[str, str | None] = dict.fromkeys(norms)
        self.direct: set[str] = set()
        self.followers: dict[str, list[str]] = {name: [] for name in norms}
        self.calls: Counter[str] = Counter()
        self._norms = set(norms)
        self._tokens: set[str] = set()  # linears whose outputs have more axes than (B, C)
        self._readers: dict[str, list[str]] = defaultdict(list)
        self._outputs: dict[str, Tensor] = {}
        self._tracer = Tracer(lambda label, function: self._readers[label].append(function))
        self._hooked = {n for n, m in model.named_modules() if has_own_hooks(m)}
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if type(module) in (nn.Conv2d, nn.Linear) or name in norms:
                    for handle in (
                        module.register_forward_pre_hook(self._record_input(name)),
                        module.register_forward_hook(self._record_output(name)),
                    ):
                        stack.callback(handle.remove)
            with self._tracer:
                out = no_grad_forward(model, image)
        for value in _tensors(out):
            self._readers[self._tracer.origin(value) or ""].append("the model's output")

    def problem_before(self, norm: str) -> str:
        """The reason why ``norm`` cannot be folded into the operation before it; empty if it can."""
        operation = self.operation[norm]
        if operation is None:
            return "does not read the output of an nn.Conv2d or nn.Linear as it is"
        if self.calls[norm] > 1:
            return f"is called {self.calls[norm]} times"
        if self.calls[operation] > 1:
            return f"reads {operation}, which is called {self.calls[operation]} times"
        if len(self._readers[operation]) > 1:
            return f"is not alone in reading {operation}: {', '.join(self._readers[operation])}"
        if norm in self.direct and operation in self._tokens:
            return f"normalizes another axis than the outputs of {operation}"
        hooked = [name for name in (norm, operation) if name in self._hooked]
        return f"depends on forward hooks of {hooked[0]}" if hooked else ""

    def problem_behind(self, norm: str, model: nn.Module) -> str:
        """The reason why ``norm`` cannot be folded into all operations that read it; empty if it can."""
        readers, followers = self._readers[norm], self.followers[norm]
        if not followers or len(readers) != len(followers):
            return f"its own is read by {', '.join(dict.fromkeys(readers)) or 'nothing'}"
        for name in followers:
            layer = model.get_submodule(name)
            if self.calls[name] > 1:
                return f"its own is read by {name}, which is called {self.calls[name]} times"
            if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and _pads(layer):
                return "the convolution that reads its own pads with zeros"
        hooked = [name for name in (norm, *followers) if name in self._hooked]
        return f"depends on forward hooks of {hooked[0]}" if hooked else ""

    def _record_output(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, out: Tensor) -> None:
            self.calls[name] += 1
            if isinstance(module, nn.Linear) and out.dim() != 2:
                self._tokens.add(name)
            self._outputs[name] = out
            self._tracer.label(out, name)

        return hook

    def _record_input(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            origin = self._tracer.origin(args[0]) if args else None
            if origin is None:
                return
            if name in self._norms and origin not in self._norms:
                self.operation[name] = origin
                if self._outputs[origin] is args[0]:
                    self.direct.add(name)
            elif name not in self._norms and origin in self._norms:
                self.followers[origin].append(name)

        return hook


def same_channels(model: nn.Module, pairs: set[tuple[str, str]], image: Tensor) -> set[tuple[str, str]]:
    """The pairs (writer, reader) with the same channels: in a forward, the writer's output is its channel's number.

    A writer or reader is a BatchNorm (channels on axis 1), a convolution (third axis from the end) or a linear (last).
    """
    found = set(pairs)
    readers: dict[str, list[str]] = defaultdict(list)
    for writer, reader in pairs:
        readers[reader].append(writer)

    def write(module: nn.Module, _: Any, out: Tensor) -> Tensor:
        axis = _channel_axis(module, out)
        numbers = torch.arange(1.0, out.shape[axis] + 1, device=out.device, dtype=out.dtype)
        return numbers.view(-1, *[1] * (out.dim() - 1 - axis)).expand(out.shape).contiguous()

    def read(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].movedim(_channel_axis(module, args[0]), -1)
            numbers = torch.arange(1.0, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
            if not torch.allclose(x, numbers.expand(x.shape), rtol=1e-5):
                found.difference_update((writer, name) for writer in readers[name])

        return hook

    with ExitStack() as stack:
        for name in {writer for writer, _ in pairs}:
            stack.callback(model.get_submodule(name).register_forward_hook(write).remove)
        for name in readers:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(read(name)).remove)
        no_grad_forward(model, image)
    return found


def _channel_axis(module: nn.Module, x: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return x.dim() - 1
    return x.dim() - 3 if isinstance(module, nn.Conv2d) else 1


def _pads(conv: nn.Conv2d) -> bool:
    return conv.padding != "valid" and any(conv._reversed_padding_repeated_twice)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
