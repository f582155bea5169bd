"""Hugging Face accelerate, which shares batches among processes, and computes in the precision that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qplug.core.distributed import launched
from qplug.core.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def accelerator_of(precision: str, device: torch.device) -> Accelerator:
    """An ``Accelerator`` on the kind of ``device``, whatever one before it was made with.

    accelerate keeps its state for the whole process and refuses another precision or device. A run may fine-tune in one
    and train the quantized model in another, so the state is made anew; processes that were started together stay so.

    Raises:
        InputError: the device cannot compute in this precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    alone = launched().count == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    try:
        return Accelerator(mixed_precision=PRECISIONS[precision], cpu=device.type == "cpu", device_placement=False)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"precision {precision} cannot be had on {device}: {error}", where="precision", fix="take float32"
        ) from error


def leave_together() -> None:
    """End the processes' group, if there is one: one that leaves without it may leave the others waiting."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
