"""Properties of this machine's processor that decide whether products of 8-bit integers are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qplug.quantization.plan import Plan
    from qplug.quantization.quantizers import Quantizer

SATURATING = "unsigned by signed bytes: exact with VNNI, wrong on x86 without it"
"""Description of the products of a ``saturating`` file, in its metadata and in the export's warning."""
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions of x86 that add products of 8-bit integers in 32 bits, as torch names them."""


def processor() -> dict[str, Any]:
    """Name, architecture and the instructions of ``VNNI`` of the processor, as torch reports them."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    instructions = [name for name in VNNI if capabilities.get(name)]
    name, architecture = capabilities.get("cpu_name"), capabilities.get("architecture")
    return {"name": name, "architecture": architecture, "instructions": instructions}


def may_saturate(plan: Plan, operation: str) -> bool:
    """Whether sums of two products of ``operation`` may exceed 16 bits, in a file of unsigned by signed bytes.

    That needs two operands in integers of 8 bits. With 7 bits on either side, or fewer, the largest sum still fits.
    """
    from qplug.export.formats.affine import LARGEST_SUM

    quantizers = plan.of(operation)
    left = quantizers.get("input") or quantizers.get("lhs")
    right = quantizers.get("weight") or quantizers.get("rhs")
    if left is None or right is None or not _in_bytes(left) or not _in_bytes(right):
        return False
    return 2 * ((1 << left.bits) - 1) * (1 << (right.bits - 1)) > LARGEST_SUM


def _in_bytes(quantizer: Quantizer) -> bool:
    from qplug.quantization.quantizers import UniformQuantizer

    return isinstance(quantizer, UniformQuantizer) and quantizer.bits <= 8


def caution() -> str | None:
    """The reason why a saturating file is wrong on this machine; ``None`` if it is exact here.

    Without VNNI, ONNX Runtime adds pairs of products of unsigned and signed bytes on x86 in 16 bits, with saturation:
    255·127·2 is 64770, and 16 bits hold 32767 at most. Its documentation of quantization describes this as "U8U8".
    """
    found = processor()
    if found["architecture"] != "x86_64" or found["instructions"]:
        return None
    return (
        f"{found['name']} has no VNNI: ONNX Runtime adds products of unsigned and signed bytes in 16 bits there, and "
        "these sums saturate; export without --saturating"
    )
