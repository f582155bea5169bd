"""The state of a training as tensors and JSON values, so that a checkpoint needs no pickle.

It has no state of random generators, because random values depend on the step alone (``qplug.training.supervised``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qplug.core.errors import PluginError

JSON_TYPES = (bool, int, float, str, type(None))


def pack(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by ``<group>.<name>``."""
    return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


@torch.no_grad()
def unpack(tensors: Mapping[str, Tensor], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Copy the tensors that ``pack`` returned into the tensors of ``groups``."""
    for name, target in pack(groups).items():
        target.copy_(tensors[name])


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by ``optimizer.<parameter>.<name>``, and the other values of parameters and groups as JSON values.

    Raises:
        PluginError: the optimizer's state contains a value of another type.
    """
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, state in whole["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                values[f"{index}.{name}"] = _json_value(name, value, optimizer)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in whole["param_groups"]]
    stored = [{k: v for k, v in group.items() if isinstance(v, JSON_TYPES)} for group in groups]  # others are constant
    return tensors, {"state": values, "groups": stored}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Load the values that ``optimizer_state`` returned."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    for key, value in [*((name.partition(".")[2], tensor) for name, tensor in own.items()), *about["state"].items()]:
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = [{**group, **stored} for group, stored in zip(whole["param_groups"], about["groups"], strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _json_value(name: str, value: Any, optimizer: torch.optim.Optimizer) -> Any:
    if isinstance(value, JSON_TYPES):
        return value
    raise PluginError(
        f"a checkpoint stores tensors and JSON values, and the state '{name}' of {type(optimizer).__name__} is a "
        f"{type(value).__name__}",
        where="optimizer",
        fix="choose another optimizer, such as adamw",
    )
