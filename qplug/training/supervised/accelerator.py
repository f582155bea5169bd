"""Hugging Face accelerate: distributes batches among processes, and trains in mixed precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qplug.core.distributed import launched
from qplug.core.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def accelerator_of(precision: str, device: torch.device) -> Accelerator:
    """An ``Accelerator`` for the type of ``device``, independent of earlier accelerators.

    accelerate keeps one state per Python process, and refuses another precision or device later. A run may fine-tune in
    one precision and train the quantized model in another, so the state is reset. The group of processes persists.

    Raises:
        InputError: the device does not support this precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    alone = launched().count == 1
    AcceleratorState._reset_state(reset_partial_state=alone)
    try:
        return Accelerator(mixed_precision=PRECISIONS[precision], cpu=device.type == "cpu", device_placement=False)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{device} does not support the precision {precision}: {error}", where="precision", fix="set float32"
        ) from error


def destroy_process_group() -> None:
    """Destroy the group of processes, if there is one. Without this, the exit of one process may block the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
