"""Replacement of modules by others that compute the same, checked on recorded calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qplug.core.errors import EquivalenceError, InputError
from qplug.models.effective_weight import plain_layer
from qplug.models.surgery import replace

LARGEST_ERROR = 1e-5
"""Largest change of a module's output by its replacement, as a fraction of the output's norm."""


@dataclass(frozen=True)
class Call:
    """One call of a module: its arguments, and the first output tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    def error(self, explicit: nn.Module) -> float:
        """Change of the output by ``explicit``, as a fraction of its norm."""
        with torch.inference_mode():
            found = _first(explicit(*self.args, **self.kwargs))
            return float((found - self.output).norm() / self.output.norm().clamp_min(1e-12))

    def check(self, explicit: nn.Module, name: str, of: str) -> None:
        """Check that ``explicit`` computes the same.

        Args:
            explicit: the replacement.
            name: path of the module.
            of: what made the replacement, for the message.

        Raises:
            EquivalenceError: the output differs by more than ``LARGEST_ERROR``.
            InputError: the output is not finite.
        """
        if not torch.isfinite(self.output).all():
            raise InputError(
                "the output is NaN or infinite on a random input",
                where=name,
                fix="check that the weights belong to this model, and that the model does not overflow float32",
            )
        error = self.error(explicit)
        if not error <= LARGEST_ERROR:
            raise EquivalenceError(
                f"{of} changes the output by {error:.1e} of its norm, more than {LARGEST_ERROR:.0e}",
                where=name,
                fix="the installed library may compute this module differently: report it, or remove the adapter",
            )


@contextmanager
def recorded_calls(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Call]]:
    """Context whose value receives the last call of each module, by name."""
    calls: dict[str, Call] = {}

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            copies = {key: _copy(value) for key, value in kwargs.items()}
            calls[name] = Call(tuple(map(_copy, args)), copies, _first(out).clone())

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(record(name), with_kwargs=True).remove)
        yield calls


def make_plain(
    model: nn.Module, subclasses: Mapping[str, nn.Module], calls: Mapping[str, Call], image: Tensor, expected: Any
) -> set[str]:
    """Replace subclasses of plain layers where one plain layer computes the same; returns their paths.

    They stay where the model does not compute the same with it: it may read what only the subclass has.

    Args:
        model: in eval mode.
        subclasses: path → module.
        calls: of these modules; one without a call stays.
        image: the model's input.
        expected: the model's output for it.
    """
    made: dict[str, tuple[nn.Module, nn.Module]] = {}
    for name, module in subclasses.items():
        call = calls.get(name)
        if call is None or len(call.args) != 1 or call.kwargs:
            continue
        plain = plain_layer(module, call.args[0])
        if plain is not None and call.error(plain) <= LARGEST_ERROR:
            made[name] = (module, plain)
    for module, plain in made.values():
        replace(model, module, plain)
    if made and not _same(model, image, expected):
        for module, plain in made.values():
            replace(model, plain, module)
        return set()
    return set(made)


def _same(model: nn.Module, image: Tensor, expected: Any) -> bool:
    try:
        with torch.inference_mode():
            found = model(image)
    except Exception:  # the model's code needs what a plain layer lacks
        return False
    if not isinstance(expected, Tensor):
        return True
    return torch.allclose(found, expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-4)


def _copy(value: Any) -> Any:
    """A copy of a tensor, unaffected by later in-place operations; any other value as it is."""
    return value.clone() if isinstance(value, Tensor) else value


def _first(out: Any) -> Tensor:
    tensor: Tensor = out[0] if isinstance(out, tuple) else out
    return tensor
