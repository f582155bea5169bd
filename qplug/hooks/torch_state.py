"""The settings of torch that hold for the whole process: a plugin may not change them for everyone behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cache
from typing import Any


@contextmanager
def torch_state_kept() -> Iterator[list[str]]:
    """Within it, settings of torch may change; afterwards they are as before.

    Yields a list that is filled when the context ends: a phrase for each setting that had changed.
    """
    before = [(name, read(), write) for name, read, write in _settings()]
    changed: list[str] = []
    try:
        yield changed
    finally:
        for (name, value, write), (_, read, _) in zip(before, _settings(), strict=True):
            now = read()
            if now != value:
                write(value)
                changed.append(f"{name} from {value} to {now}")


@cache
def _settings() -> tuple[tuple[str, Callable[[], Any], Callable[[Any], Any]], ...]:
    import torch

    def set_device(device: torch.device) -> None:
        # the CPU is what torch starts with, and naming it would slow down every function that makes a tensor
        torch.set_default_device(None if device.type == "cpu" else device)

    cudnn = torch.backends.cudnn

    def flag(name: str) -> tuple[str, Callable[[], Any], Callable[[Any], Any]]:
        return f"cudnn.{name}", lambda: getattr(cudnn, name), lambda value: setattr(cudnn, name, value)

    return (
        ("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
        ("the default device", torch.get_default_device, set_device),
        ("the number of threads", torch.get_num_threads, torch.set_num_threads),
        ("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        ("the float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (
            "deterministic algorithms",
            torch.are_deterministic_algorithms_enabled,
            torch.use_deterministic_algorithms,
        ),
        *map(flag, ("enabled", "benchmark", "deterministic", "allow_tf32")),
    )


def versions_of(arguments: Mapping[str, Any]) -> dict[str, tuple[Any, int]]:
    """Name → (tensor, its version) of every tensor that a hook is given; writing to a tensor raises its version.

    Tensors are found in the arguments, in their fields and in fields of these, not in modules.
    """
    found: dict[str, tuple[Any, int]] = {}
    for name, value in arguments.items():
        _collect(name, value, found, depth=3)
    return found


def _collect(name: str, value: Any, found: dict[str, tuple[Any, int]], depth: int) -> None:
    import torch

    if isinstance(value, torch.Tensor):
        if not value.is_inference():  # such a tensor has no version
            found[name] = (value, value._version)
    elif depth and is_dataclass(value) and not isinstance(value, type):
        for key, item in vars(value).items():
            _collect(f"{name}.{key}", item, found, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _collect(f"{name}[{index}]", item, found, depth - 1)
