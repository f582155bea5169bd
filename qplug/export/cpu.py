"""What of this machine's processor decides how products of 8-bit integers come out."""

from __future__ import annotations

from typing import Any

INTEGER = ("onnx-integer", "onnx-qdq")
"""Formats whose 8-bit integers ONNX Runtime multiplies as integers."""
SATURATING = "unsigned by signed bytes: exact with VNNI, wrong on x86 without it"
"""What a file says of its products, and an export warns of, where ``saturating`` asked for them."""
WIDE = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions of x86 that add products of 8-bit integers in 32 bits."""


def processor() -> dict[str, Any]:
    """Name and architecture of the processor, and whether it adds such products in 32 bits, as torch knows them."""
    import torch

    known = torch.cpu.get_capabilities()
    wide = [name for name in WIDE if known.get(name)]
    return {"name": known.get("cpu_name"), "architecture": known.get("architecture"), "instructions": wide}


def caution() -> str | None:
    """Why a saturating file is wrong on this machine; ``None`` where it computes what an exact one does.

    Without VNNI, ONNX Runtime adds pairs of products of unsigned and signed bytes on x86 in 16 bits, with saturation:
    255·127·2 is 64770, and the most that they hold 32767. Its documentation of quantization says so, under "U8U8".
    """
    found = processor()
    if found["architecture"] != "x86_64" or found["instructions"]:
        return None
    return (
        f"{found['name']} has no VNNI: ONNX Runtime adds products of unsigned and signed bytes in 16 bits there, where "
        "they saturate; export without --saturating"
    )
