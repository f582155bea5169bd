"""The plan: the quantizer of every site of a model, serializable and independent of the backend."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qplug.core.errors import InputError
from qplug.core.types import Change, QuantSpec, Site
from qplug.quantization.plan_record import PLAN_FORMAT, check_plan
from qplug.quantization.quantizers import Quantizer
from qplug.quantization.restored import check_restored


@dataclass(frozen=True)
class Decision:
    """The quantizer of one site, the technique that chose it with its reason, and the technique that chose the bits.

    ``undone`` names the technique whose reconstruction did not lower the error of the unit, so that the quantizer and
    the weight stayed as they were; it is empty otherwise.
    """

    site: Site
    spec: QuantSpec
    quantizer: Quantizer
    technique: str
    reason: str
    bits_by: str
    undone: str = ""


@dataclass
class Plan:
    """The quantizers of all sites, and all changes of the model before quantization.

    Attributes:
        decisions: site name → decision, in model order.
        changes: rewrites, folded BatchNorms and smoothings, in the order of application.
        float_sites: site that stays in float, or BatchNorm that could not be folded → reason.
        float_macs: module → multiply-accumulates of one image that are not fully quantized.
        total_macs: multiply-accumulates of one image.
        unknown: module → operators, or its weights, whose multiply-accumulates no formula counts.
        calls: module → its calls in one forward, as calibration saw them.
    """

    decisions: dict[str, Decision] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    float_sites: dict[str, str] = field(default_factory=dict)
    float_macs: dict[str, int] = field(default_factory=dict)
    total_macs: int = 0
    unknown: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def of(self, module: str) -> dict[str, Quantizer]:
        """The quantizers of one operation, by role."""
        return {d.site.role: d.quantizer for d in self if d.site.module == module}

    def modules(self) -> list[str]:
        """The operations with a quantizer, in model order."""
        return list(dict.fromkeys(decision.site.module for decision in self))

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions.values())

    @property
    def coverage(self) -> float | None:
        """Share of multiply-accumulates with two quantized operands, among all of them (attention included).

        ``None``: unknown, as the model computes something that no formula counts.
        """
        if self.unknown:
            return None
        return 1.0 - sum(self.float_macs.values()) / self.total_macs if self.total_macs else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON values; ``from_dict`` restores an equal plan with bit-exact scales."""
        return {
            "format": PLAN_FORMAT,
            "decisions": [
                {
                    "site": {**asdict(d.site), "kind": d.site.kind.value},
                    "spec": {**asdict(d.spec), "granularity": d.spec.granularity.value},
                    "quantizer": d.quantizer.to_dict(),
                    "technique": d.technique,
                    "reason": d.reason,
                    "bits_by": d.bits_by,
                    **({"undone": d.undone} if d.undone else {}),
                }
                for d in self
            ],
            "changes": [asdict(change) for change in self.changes],
            "float_sites": self.float_sites,
            "float_macs": self.float_macs,
            "total_macs": self.total_macs,
            "unknown": self.unknown,
            "calls": self.calls,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], quantizers: Mapping[str, str]) -> Plan:
        """Read a plan back.

        Args:
            data: the result of ``to_dict``.
            quantizers: kind → ``module:Class``, as in ``Registry.quantizers``.

        Raises:
            InputError: the data is no plan, has another format, or a quantizer that no installed plugin offers.
            UnreadableQuantizer: the class of a quantizer does not read its values.
        """
        record = check_plan(data)
        plan = cls(
            changes=[Change(**change.model_dump()) for change in record.changes],
            float_sites=dict(record.float_sites),
            float_macs=dict(record.float_macs),
            total_macs=record.total_macs,
            unknown=dict(record.unknown),
            calls=dict(record.calls),
        )
        for row in record.decisions:
            site, spec = Site(**row.site.model_dump()), QuantSpec(**row.spec.model_dump())
            values = row.quantizer.model_dump()
            try:
                quantizer = quantizer_of(values, quantizers)
                check_restored(quantizer, values, site)
            except InputError:
                raise
            except Exception as error:  # a plugin's class may raise anything
                raise UnreadableQuantizer(values["kind"], site.name, error) from error
            plan.decisions[site.name] = Decision(
                site, spec, quantizer, row.technique, row.reason, row.bits_by, row.undone
            )
        return plan


class UnreadableQuantizer(InputError):
    """The class of a quantizer does not read the values of a plan.

    Attributes:
        kind: of the quantizer.
        path: ``module:Class``.
    """

    def __init__(self, kind: str, site: str, error: Exception) -> None:
        self.kind = kind
        super().__init__(f"quantizer '{kind}' of {site} cannot be read: {type(error).__name__}: {error}")


def quantizer_of(data: dict[str, Any], quantizers: Mapping[str, str]) -> Quantizer:
    """The quantizer with the values of ``Quantizer.to_dict``; raises ``InputError`` if no plugin offers its kind."""
    path = quantizers.get(data["kind"])
    if path is None:
        raise InputError(
            f"the plan uses quantizer '{data['kind']}', and the installed plugins offer {sorted(quantizers)}",
            fix="install the plugin that made this plan",
        )
    module, _, name = path.partition(":")
    quantizer: Quantizer = getattr(importlib.import_module(module), name).from_dict(data)
    return quantizer
