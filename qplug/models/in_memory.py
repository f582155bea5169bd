"""A model that a Python program holds: its interface for a run, and its place in the recipe of a run folder.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qplug.core.component import Config, ModelSource
from qplug.core.errors import InputError
from qplug.models.float_model import FloatModel

if TYPE_CHECKING:
    from torch import nn

    from qplug.core.task import Task

GIVE_IT = "give it: qplug.load_quantized(FOLDER, model=…) or qplug.export_run(FOLDER, model=…, inputs=…) in Python"


class NotGiven(InputError):
    """What a program held in memory is asked of a run folder, which does not hold it."""


class MemoryModel(ModelSource):
    """A model that a Python program gave to ``qplug.quantize``. A run folder of it loads with the model at hand."""

    class Config(Config):
        """``model: {source: memory, name: Net, shape: [3, 224, 224]}``, as ``qplug.quantize`` writes it."""

        source: Literal["memory"]
        name: str = Field(min_length=1, description="class of the model")
        shape: tuple[int, ...] = Field(description="shape of one input")
        dtype: str = Field(default="float32", description="type of the input, as torch names it")
        keywords: tuple[str, ...] = Field(default=(), description="names of the inputs; empty: one input by position")
        flat: bool = Field(
            default=False, description="whether all tensors that the model returns are outputs, flattened"
        )
        detector: bool = Field(
            default=False, description="whether it is a detector of torchvision, on a canvas of shape"
        )
        task: str = Field(default="classification", min_length=1, description="name of the task of the outputs")

    module: nn.Module | None = None
    _task: Task | None = None

    def given(self, module: nn.Module, task: Task | None = None) -> MemoryModel:
        """The source with its model, which stays as it is, and with its task if the name alone does not tell it."""
        source = type(self)(self.config)
        source.module, source._task = module, task
        return source

    def load(self) -> FloatModel:
        """A copy of the model, with hooks that give it one input and one output.

        Raises:
            InputError: the model was not given, cannot be copied, or has weights that are not finite.
        """
        import torch

        from qplug.data.memory import AsItIs
        from qplug.models.interface import InputOfNames, all_outputs

        if self.module is None:
            what = (
                f"the model {self.config.name} was in the memory of a Python program, and the run folder holds no code"
            )
            raise NotGiven(what, where="model", fix=GIVE_IT)
        config = self.config
        if config.detector:
            from qplug.models.detector_interface import FLOAT_PARTS, settle_detector

            module = _copied(self.module).cpu().float().eval()
            preparation, task = settle_detector(module, (config.shape[1], config.shape[2]))
            return FloatModel.of(module, config.name, preparation, FLOAT_PARTS, task=task)
        prepared = AsItIs(tuple(config.shape), getattr(torch, config.dtype))
        source = FloatModel.of(_copied(self.module), config.name, prepared, task_name=config.task, task=self._task)
        choose_attention = getattr(source.module, "set_attn_implementation", None)
        if len(config.keywords) > 1 and callable(choose_attention):
            choose_attention("eager")  # transformers': masks that are added, as adapters take them
        if config.keywords:
            source.module.register_forward_pre_hook(InputOfNames(config.keywords), with_kwargs=True, prepend=True)
        if config.flat:
            source.module.register_forward_hook(all_outputs)
        return source

    def architecture(self) -> FloatModel:
        """As ``load``: the model's weights are replaced by those of the run folder."""
        return self.load()

    def key(self) -> dict[str, Any]:
        """None: raises ``InputError``, so that no run of the model stands for another one."""
        raise InputError("a model in memory has no key", where="model")


def as_given(module: nn.Module) -> nn.Module:
    """A module of a run, in place, with the arguments and outputs of the caller's own model again."""
    from qplug.models.detector_interface import is_torchvision_detector, remove_detector_interface
    from qplug.models.interface import remove_interface

    if is_torchvision_detector(module):
        remove_detector_interface(module)
    return remove_interface(module)


def _copied(model: nn.Module) -> nn.Module:
    """A copy of the caller's model; raises ``InputError`` if it cannot be copied."""
    from qplug.models.effective_weight import copy_module

    try:
        return copy_module(model)
    except Exception as error:  # the model's own code, and tensors that autograd recorded
        raise InputError(
            f"the model cannot be copied: {type(error).__name__}: {' '.join(str(error).split())[:160]}",
            where=type(model).__name__,
            fix="make copy.deepcopy(model) work; for torch.nn.utils.weight_norm, run model.eval() once within "
            "torch.no_grad(), or call torch.nn.utils.remove_weight_norm",
        ) from error
