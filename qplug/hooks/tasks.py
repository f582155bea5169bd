"""The task of a model, by its name among those that are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qplug.core.errors import InputError, PluginError, Terminated
from qplug.core.text import did_you_mean
from qplug.hooks.registry import Registry

if TYPE_CHECKING:
    from qplug.core.task import Task
    from qplug.models.float_model import FloatModel


def task_named(name: str, registry: Registry) -> Task:
    """The task of that name, with its default options.

    Raises:
        InputError: no installed plugin offers it.
        PluginError: its class cannot be imported or made, or makes no task.
    """
    from qplug.core.task import TASKS, Task, make_task

    if name in TASKS:
        return TASKS[name]
    if name not in registry.tasks:
        fix = did_you_mean(name, [*TASKS, *registry.tasks]) or f"one of {', '.join(sorted({*TASKS, *registry.tasks}))}"
        raise InputError(f"there is no task '{name}'", where="model.task", fix=fix)
    path, owner = registry.tasks[name], registry.owners.get(f"task:{name}")
    try:
        task = make_task(path)
    except Terminated:
        raise
    except Exception as error:  # the code of a plugin
        raise PluginError(f"task '{name}' cannot be made: {type(error).__name__}: {error}", where=str(owner)) from error
    if not isinstance(task, Task) or task.name != name:
        made = f"one named '{task.name}'" if isinstance(task, Task) else f"a {type(task).__name__}"
        raise PluginError(f"expected {path} to make the task '{name}', got {made}", where=str(owner))
    return task


def settle_task(source: FloatModel, registry: Registry) -> FloatModel:
    """``source`` with its task, which it may know by name alone; raises as ``task_named``."""
    if source.own_task is None:
        source.own_task = task_named(source.task_name, registry)
    return source
