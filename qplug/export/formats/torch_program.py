"""The format ``torch``: a program of torch.export, which is an archive of a JSON graph and raw tensors, without pickle.

torch alone loads it by ``torch.export.load(FILE).module()``. qplug need not be installed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_structure

from qplug.core.storage.bit_packing import pack_bits
from qplug.export.calls import INPUT, LOGITS, Call
from qplug.export.formats.fallback import plain_weight, traced
from qplug.export.formats.lowering import Format, float_weights, lower
from qplug.export.formats.trace import named, trace
from qplug.quantization.plan import Decision
from qplug.quantization.quantizers import Quantizer

if TYPE_CHECKING:
    from qplug.pipeline.load_run import LoadedRun

METADATA_FILE = "qplug.json"
"""File in the archive that holds the metadata."""
PACKED_WIDTHS = (1, 2, 4, 8, 16)
"""Bits of a code in the file: divisors of a byte's 8 bits, or two bytes."""


class PackedWeight(nn.Module):
    """A weight as packed codes (``core.storage.bit_packing``), and the operators of its quantizer's ``decode``."""

    dtype = torch.float32  # forwards of transformers read it, as of a Parameter

    packed: Tensor
    shifts: Tensor

    def __init__(self, quantizer: Quantizer, codes: Tensor, transposed: bool) -> None:
        super().__init__()
        self.quantizer, self.transposed, self.shape = quantizer, transposed, codes.shape
        self.width = next(width for width in PACKED_WIDTHS if width >= quantizer.bits)
        self.register_buffer("packed", pack_bits(codes, self.width))
        self.register_buffer("shifts", torch.arange(0, 8, min(self.width, 8), dtype=torch.int32))

    def forward(self) -> Tensor:
        """The values, float32."""
        values = self.quantizer.decode(self._codes())
        return values.t() if self.transposed else values

    def _codes(self) -> Tensor:
        whole = self.packed.to(torch.int32)
        if self.width == 16:
            low, high = whole.view(-1, 2).unbind(1)
            return (low + (high << 8)).view(self.shape)
        fields = (whole.unsqueeze(1) >> self.shifts) & ((1 << self.width) - 1)
        return fields.flatten()[: self.shape.numel()].view(self.shape)


class Plain(Format):
    """Every quantizer as its own operators, and weights as packed codes."""

    def activation(self, decision: Decision, transposed: bool) -> nn.Module:
        """See ``Format``."""
        return traced(decision.quantizer, transposed)

    def weight(self, decision: Decision, weight: Tensor, transposed: bool, beside: nn.Module | None) -> nn.Module:
        """See ``Format``."""
        return plain_weight(decision, weight, transposed, PackedWeight)


@dataclass
class TorchFile:
    """See ``ExportedFile``."""

    model: ExportedProgram
    calls: list[Call]
    float_weights: list[str]
    joined: dict[str, list[str]]

    def content(self, metadata: Mapping[str, str]) -> bytes:
        """The archive's bytes, with ``metadata`` as the extra file ``qplug.json``."""
        buffer = io.BytesIO()
        torch.export.save(
            self.model, buffer, extra_files={METADATA_FILE: json.dumps(dict(metadata), ensure_ascii=False)}
        )
        return buffer.getvalue()


def torch_file(planned: LoadedRun) -> TorchFile:
    """A run as a file of the format ``torch``: weights are packed codes, which each forward decodes."""
    return torch_program(planned, Plain())


def torch_program(planned: LoadedRun, form: Format) -> TorchFile:
    """A run as a program of torch.export, whose operations ``form`` makes."""
    lowered = lower(planned.model, planned.plan, form)
    program, of = trace(lowered, planned.plan.modules(), planned.preprocessing.example())
    (end,) = (node for node in program.graph.nodes if node.op == "output")
    logits, *watched = end.args[0]
    values = [node.args[0] for node in watched]  # ``Watched`` copied them
    names = {id(node): INPUT if node.op == "placeholder" else node.name for node in values} | {id(logits): LOGITS}
    calls, _ = named(of, values, names)
    _only(program, end, logits)
    return TorchFile(program, calls, float_weights(lowered, planned.plan), {})


def _only(program: ExportedProgram, end: fx.Node, logits: fx.Node) -> None:
    """Remove every output but the logits, and the nodes' places in the code.

    Remove the example input too: the archive would pickle it, and nothing else.
    """
    end.args = ((logits,),)
    del program.graph_signature.output_specs[1:]
    signature = program.module_call_graph[0].signature
    assert signature is not None
    signature.out_spec = tree_structure(logits)
    program.graph.eliminate_dead_code()
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    program.graph_module.recompile()
    program.example_inputs = None
