"""The contract of quantizers, on the core's own and on ways to be wrong."""

import pytest
import torch

import qplug
from qplug import LogQuantizer, Region, RegionQuantizer, UniformQuantizer
from qplug.testing import QuantizerContract

SCALE = torch.tensor(0.1)


class TestUniform(QuantizerContract):
    quantizers = (
        UniformQuantizer(SCALE, None, bits=4, signed=True),
        UniformQuantizer(SCALE, None, bits=8, signed=False),
        UniformQuantizer(SCALE, torch.tensor(3.0), bits=4, signed=False),
    )


class TestRegions(QuantizerContract):
    quantizers = (
        RegionQuantizer(0.05, (Region(-(1 << 6), 0, -4, -1), Region(0, 3, 0, 3), Region(32, 5, 0, 7)), bits=4),
    )


class TestLog(QuantizerContract):
    quantizers = (LogQuantizer(1.0, 1, bits=4), LogQuantizer(0.7, 2, bits=4), LogQuantizer(SCALE, 1, bits=8))


class Halves(qplug.Quantizer):
    """As the docstring of ``qplug.Quantizer`` shows it, with what a run folder needs."""

    kind = "mine.halves"

    def __init__(self, scale, bits):
        super().__init__()
        self.bits = bits
        self.register_buffer("scale", scale)

    def forward(self, x):
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        codes = qplug.clamp_ste(qplug.round_ste(x / self.scale), low, high)
        return codes * self.scale

    def to_dict(self):
        return {"kind": self.kind, "bits": self.bits, "scale": self.scale.item()}

    @classmethod
    def from_dict(cls, data):
        return cls(torch.tensor(data["scale"]), data["bits"])


class TestHalves(QuantizerContract):
    quantizers = (Halves(SCALE, 4), Halves(SCALE, 8))


def test_the_public_straight_through_functions_compute_what_a_uniform_quantizer_does():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    expected = UniformQuantizer(SCALE, None, bits=4, signed=True)(x)
    assert torch.equal(qplug.fake_quantize(x, SCALE, None, -8, 7), expected)
    assert torch.equal(Halves(SCALE, 4)(x), expected)
    assert qplug.Decision.__name__ == "Decision"


class Wrong(UniformQuantizer):
    kind = "wrong"


class WritesToInput(Wrong):
    def forward(self, x):
        return x.clamp_(-1, 1)


class OtherValuesInInference(Wrong):
    def infer(self, x):
        return super().infer(x) + 1.0


class NoGradient(Wrong):
    def forward(self, x):
        return super().forward(x.detach())


class OtherKind(Wrong):
    def to_dict(self):
        return super().to_dict() | {"kind": "uniform"}


class NotANumber(Wrong):
    def forward(self, x):
        return super().forward(x) * float("nan")


class OtherCodes(Wrong):
    def encode(self, x):
        return super().encode(x).flip(0)


class CodesBelowZero(Wrong):
    def encode(self, x):
        return super().encode(x) + self.low

    def decode(self, codes):
        return super().decode(codes - self.low)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (WritesToInput, "forward writes to its input"),
        (OtherValuesInInference, "infer and forward differ"),
        (NoGradient, "no gradient passes"),
        (OtherKind, "to_dict lacks 'kind': 'wrong'"),
        (NotANumber, "not finite"),
        (OtherCodes, r"decode\(encode\(x\)\) and infer\(x\) differ"),
        (CodesBelowZero, r"codes outside of 0 … 2\^4 − 1"),
    ],
)
def test_the_suite_finds_what_is_wrong(wrong, message):
    quantizer = wrong(SCALE, None, bits=4, signed=True)
    with pytest.raises(AssertionError, match=message):
        QuantizerContract().test_contract(quantizer)
