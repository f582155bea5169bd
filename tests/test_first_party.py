"""Every installed technique keeps the contract that third parties test theirs by."""

from qplug.registry import installed
from qplug.testing import TechniqueContract

CONFIGS = {
    "baseline.uniform_bits": ({"weights": 4, "activations": 6},),
    "mptq_vit.greedy_mp": (
        {"weights": 4.0, "activations": 5.5},
        {"weights": 4, "activations": 4, "average": "layers", "metric": "sqnr"},
    ),
    "mptq_vit.opt_m": ({}, {"split": "paper", "s0_grid": "paper", "candidates": 10}),
    "mptq_vit.sq_b": ({}, {"range": "before_shift"}, {"match": ["*.norm1"], "shift": False}),
    "tsptq_vit.v_2sf": ({}, {"kinds": ["post_softmax"], "ratio": "paper"}),
}
"""Parameters that a technique needs, and combinations worth a run; the others are tried with their defaults."""

for _name, _technique in installed().techniques.items():
    _class = "Test" + "".join(word.title() for word in _name.replace(".", "_").split("_"))
    globals()[_class] = type(
        _class,
        (TechniqueContract,),
        {"technique": _technique, "configs": CONFIGS.get(_name, ({},)), "__module__": __name__},
    )


def test_every_configuration_is_of_an_installed_technique():
    assert set(CONFIGS) <= set(installed().techniques)
