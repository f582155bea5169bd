"""Plans for small models, and what they compute in plain torch, for every backend."""

import copy

from qplug import QuantSpec
from qplug.testing.backend_plans import REGIONS, SETTINGS, C, plan_of, reference, relative

__all__ = ["REGIONS", "SETTINGS", "lowered", "plan_of", "reference", "relative"]


def lowered(backend, known, weights=QuantSpec(4, C), activations=QuantSpec(4), leave=()):  # noqa: B008  frozen
    model, found, calibration, _ = known
    plan = plan_of(found, calibration, weights, activations, leave)
    return backend.apply(copy.deepcopy(model), plan), plan
