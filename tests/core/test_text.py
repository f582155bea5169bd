"""Suggestions for names: beginnings first, then what is similar."""

import pytest

from qplug.core.text import close, did_you_mean

NAMES = ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "davit_tiny", "deit_small_patch16_224"]


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("deit_tiny", NAMES, ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "davit_tiny"]),
        ("DEIT_TINY_P", NAMES, ["deit_tiny_patch16_224"]),
        ("davit_tinny", NAMES, ["davit_tiny"]),
        ("minmax", ["baseline.minmax", "fq_vit.ptf"], ["baseline.minmax"]),
        ("b", ["bits", "backend"], []),
        ("xyz", NAMES, []),
    ],
)
def test_close(word, known, expected):
    assert close(word, known)[: len(expected)] == expected
    assert bool(close(word, known)) == bool(expected)


def test_did_you_mean():
    assert did_you_mean("bit", ["bits", "seed"]) == "did you mean 'bits'?"
    assert did_you_mean("q", ["bits"]) == ""
