"""The whole state of a training as tensors and JSON values, so that no pickle is needed to keep it.

It holds no state of random generators: random values depend on the step alone (see ``qplug.training.supervised``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qplug.core.errors import PluginError

PLAIN = (bool, int, float, str, type(None))


def pack(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by ``<group>.<name>``."""
    return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


@torch.no_grad()
def unpack(tensors: Mapping[str, Tensor], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Copy what ``pack`` gave into the tensors of ``groups``."""
    for name, place in pack(groups).items():
        place.copy_(tensors[name])


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by ``optimizer.<parameter>.<name>``, and the other values of parameters and groups as JSON.

    Raises ``PluginError`` where an optimizer keeps something that is neither.
    """
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, state in whole["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                values[f"{index}.{name}"] = _plain(name, value, optimizer)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in whole["param_groups"]]
    kept = [{k: v for k, v in group.items() if isinstance(v, PLAIN)} for group in groups]  # the rest never changes
    return tensors, {"state": values, "groups": kept}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Put back what ``optimizer_state`` gave."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    for key, value in [*((name.partition(".")[2], tensor) for name, tensor in own.items()), *about["state"].items()]:
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = [{**mine, **kept} for mine, kept in zip(whole["param_groups"], about["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _plain(name: str, value: Any, optimizer: torch.optim.Optimizer) -> Any:
    if isinstance(value, PLAIN):
        return value
    raise PluginError(
        f"{type(optimizer).__name__} keeps '{name}' as {type(value).__name__}, which no checkpoint can hold",
        where="optimizer",
        fix="take another, such as adamw",
    )
