"""What ``plan.json`` holds, as validated values. Importing this module does not import torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from qplug.core.errors import InputError
from qplug.core.types import Granularity, Role, SiteKind, ZeroPoint

PLAN_FORMAT = 1
Bits = Annotated[StrictInt, Field(ge=2, le=16)]
Size = Annotated[StrictInt, Field(ge=1, le=2**40)]
Count = Annotated[StrictInt, Field(ge=0, le=2**62)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SiteRecord(_Record):
    """``qplug.core.types.Site``."""

    name: str
    kind: SiteKind
    module: str
    role: Role
    shape: tuple[Size, ...]
    macs: Count
    channel_axis: StrictInt
    head_axis: StrictInt | None
    source: str | None


class SpecRecord(_Record):
    """``qplug.core.types.QuantSpec``."""

    bits: Bits
    granularity: Granularity
    symmetric: StrictBool
    zero_point: ZeroPoint
    number_format: str


class QuantizerRecord(BaseModel):
    """``Quantizer.to_dict``: a kind, the bits, and values that only the quantizer's class knows."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    kind: str
    bits: Bits


class DecisionRecord(_Record):
    """``qplug.quantization.plan.Decision``; ``undone`` is left out where it is empty."""

    site: SiteRecord
    spec: SpecRecord
    quantizer: QuantizerRecord
    technique: str
    reason: str
    bits_by: str
    undone: str = ""


class ChangeRecord(_Record):
    """``qplug.core.types.Change``."""

    where: str
    technique: str
    preserves: StrictBool
    reason: str


class PlanRecord(_Record):
    """``Plan.to_dict``."""

    format: int
    decisions: tuple[DecisionRecord, ...]
    changes: tuple[ChangeRecord, ...]
    float_sites: dict[str, str]
    float_macs: dict[str, Count]
    total_macs: Count
    unknown: dict[str, str]
    calls: dict[str, Count]


def check_plan(data: Any) -> PlanRecord:
    """The values of ``Plan.to_dict``, validated; raises ``InputError`` with the first problem."""
    received = data.get("format") if isinstance(data, dict) else None
    if received != PLAN_FORMAT:
        raise InputError(f"received a plan of format {received!r}, this version reads format {PLAN_FORMAT}")
    try:
        return PlanRecord.model_validate(data)
    except ValidationError as error:
        first, *more = error.errors(include_url=False, include_input=False)
        place = ".".join(map(str, first["loc"]))[:120]
        words = first["msg"][:1].lower() + first["msg"][1:]
        rest = f" (and {len(more)} more)" if more else ""
        raise InputError(f"holds no plan: {place}: {words}{rest}") from None
