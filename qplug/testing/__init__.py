"""What a plugin's own tests use: contract suites to subclass, and toys small enough to run in milliseconds.

Example::

    class TestMine(TechniqueContract):
        technique = MyTechnique
        configs = ({}, {"strength": 0.5})
"""

from qplug.testing.backends import BackendContract
from qplug.testing.metrics import MetricContract
from qplug.testing.quantizers import QuantizerContract
from qplug.testing.run import toy_recipe, toy_registry, toy_run
from qplug.testing.sources import DataSourceContract, ModelSourceContract
from qplug.testing.tasks import TaskContract
from qplug.testing.technique import TechniqueContract
from qplug.testing.toys import toy_calibration, toy_groups, toy_images, toy_vit

__all__ = [
    "BackendContract",
    "DataSourceContract",
    "MetricContract",
    "ModelSourceContract",
    "QuantizerContract",
    "TaskContract",
    "TechniqueContract",
    "toy_calibration",
    "toy_groups",
    "toy_images",
    "toy_recipe",
    "toy_registry",
    "toy_run",
    "toy_vit",
]
