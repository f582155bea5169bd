"""The contract suite for third-party techniques, applied to every installed technique."""

import pytest

from qplug.hooks.registry import installed
from qplug.testing import TechniqueContract

CONFIGS = {
    "baseline.uniform_bits": ({"weights": 4, "activations": 6},),
    "fq_vit.log_int_softmax": ({}, {"integer_exp": True}),
    "hawq.hawq_v3": (
        {"size_mb": "50%", "probes": 4},
        {"bops_g": "40%", "size_mb": 0.007, "candidates": [3, 4, 8], "accounting": "full", "probes": 2},
    ),
    "liu2021.pareto": (
        {"weights": 5.0, "activations": 6.0},
        {"weights": 4.5, "activations": 4.0, "candidates": [4, 8]},
    ),
    "mptq_vit.greedy_mp": (
        {"weights": 4.0, "activations": 5.5},
        {"weights": 4, "activations": 4, "average": "layers", "metric": "sqnr"},
    ),
    "mptq_vit.opt_m": ({}, {"split": "paper", "s0_grid": "paper", "candidates": 10}),
    "mptq_vit.sq_b": ({}, {"range": "before_shift"}, {"match": ["*.norm1"], "strength": 0.3}),
    "brecq.adaround": ({"iterations": 3, "batch_size": 4, "loss": "perturbation"},),
    "brecq.brecq": (
        {"iterations": 3, "batch_size": 4},
        {"iterations": 3, "batch_size": 4, "scales": True, "keep": 0.5, "loss": "fisher"},
    ),
    "modelopt.auto_quantize": ({"candidates": [4, 8]}, {"bits": 5, "method": "kl_div"}),
    "modelopt.awq_lite": ({}, {"alpha_step": 0.5}),
    "modelopt.smooth_quant": ({}, {"alpha": 0.5}),
    "mr_biq.binary_coding": ({}, {"uniform": True, "refine": False}, {"offset": True}, {"group_size": 8}),
    "mr_biq.reconstruct": ({"iterations": 3}, {"iterations": 2, "learn": "codes", "keep": 0.5, "loss": "low_rank"}),
    "noisyquant.noisy_bias": ({}, {"kinds": ["post_gelu"], "means": 3, "ranges": 4}),
    "ptq4vit.search": ({}, {"objective": "cosine", "rounds": 0, "fused": []}),
    "ptq4vit.twin": ({}, {"ratio": "free", "candidates": 10, "boundary": "paper", "splits": 4}),
    "qmlp.bounded_activation": ({}, {"to": "relu6", "match": ["blocks.0.*"]}),
    "qmlp.norm": ({}, {"to": "batch_norm", "start": "affine"}),
    "qmlp.token_mixers": ({}, {"groups": 2, "match": ["*.mlp"]}),
    "repq_vit.log_sqrt2": ({}, {"search": "output"}),
    "repq_vit.reparameterize": ({}, {"match": ["*.norm2"], "percentiles": [99.0, 100.0]}),
    "smoothing.outlier_suppression_plus": ({}, {"scale": "none"}, {"shift": "none", "match": ["*.fc1"]}),
    "smoothing.smooth_quant": ({}, {"alpha": 0.8, "match": ["*.norm1"]}),
    "tsptq_vit.v_2sf": ({}, {"kinds": ["post_softmax"], "ratio": "paper"}),
}
"""Parameters that a technique needs, and combinations worth a run; the others are tried with their defaults."""

SLOW = {
    "brecq.adaround",
    "brecq.brecq",
    "easyquant.cosine",
    "modelopt.auto_quantize",
    "modelopt.awq_lite",
    "mr_biq.binary_coding",
    "mr_biq.reconstruct",
    "ptq4vit.search",
}

for _name, _technique in installed().techniques.items():
    _class = "Test" + "".join(word.title() for word in _name.replace(".", "_").split("_"))
    globals()[_class] = type(
        _class,
        (TechniqueContract,),
        {
            "technique": _technique,
            "configs": CONFIGS.get(_name, ({},)),
            "__module__": __name__,
            "pytestmark": [pytest.mark.slow] if _name in SLOW else [],
        },
    )


def test_every_configuration_is_of_an_installed_technique():
    assert set(CONFIGS) | SLOW <= set(installed().techniques)
