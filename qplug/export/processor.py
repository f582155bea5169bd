"""What of this machine's processor decides how products of 8-bit integers come out."""

from __future__ import annotations

from typing import Any

import torch

INTEGER = ("onnx-integer", "onnx-qdq")
"""Formats of which ONNX Runtime multiplies unsigned by signed 8-bit integers."""
WIDE = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions of x86 that add products of 8-bit integers in 32 bits."""


def processor() -> dict[str, Any]:
    """Name and architecture of the processor, and whether it adds such products in 32 bits, as torch knows them."""
    known = torch.cpu.get_capabilities()
    wide = [name for name in WIDE if known.get(name)]
    return {"name": known.get("cpu_name"), "architecture": known.get("architecture"), "instructions": wide}


def caution(format: str) -> str | None:
    """What to know where this machine executes ``format``; ``None`` where it computes what any exact one does.

    Without VNNI, ONNX Runtime adds pairs of products on x86 in 16 bits, with saturation: 255·127·2 is 64770, and the
    most that they hold 32767. Its documentation of quantisation says so, under "U8U8".
    """
    found = processor()
    if format not in INTEGER or found["architecture"] != "x86_64" or found["instructions"]:
        return None
    return (
        f"{found['name']} has no VNNI: ONNX Runtime adds products of 8-bit integers in 16 bits there, where they may "
        "saturate; compare on a processor with VNNI, or export weights of 7 bits"
    )
