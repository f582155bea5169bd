"""The axis of the batch is found by two forwards, whatever sizes coincide."""

import pytest
import torch
from numeric_toys import Constant, Sequence
from torch import nn

from qplug.models.attention import MatMul
from qplug.models.batch_axes import Axes, batch_axes

X = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))


def axes(function, x=X, **modules):
    torch.manual_seed(0)
    model = Sequence(function, **modules).eval()
    return batch_axes(model, dict(model.named_modules()), x)


@pytest.mark.parametrize("rows", [1, 2, 6, 15])
def test_a_table_is_a_constant_whatever_its_number_of_rows(rows):
    found = axes(
        lambda m, x: m.fc(x) + m.bias(m.table.values).mean(0),
        fc=nn.Linear(8, 4),
        bias=nn.Linear(2, 4),
        table=Constant(rows, 2),
    )
    assert found.of("fc") == Axes((0,))
    assert found.of("bias") == Axes((None,))
    assert found.of("bias").constant
    assert found.any_constant


AXES = {
    "windows": (lambda m, x: m.fc(x.reshape(-1, 2, 8)), (0,)),
    "tokens first": (lambda m, x: m.fc(x.transpose(0, 1)), (1,)),
    "a query repeated for each example": (lambda m, x: m.fc(m.query.values.expand(len(x), 1, 8)), (0,)),
    "a query for all": (lambda m, x: m.fc(m.query.values) + x, (None,)),
}


@pytest.mark.parametrize("what", AXES)
def test_the_axis_that_counts_examples(what):
    function, expected = AXES[what]
    assert axes(function, fc=nn.Linear(8, 8), query=Constant(1, 1, 8)).of("fc") == Axes(expected)


def test_each_operand_and_each_call_has_an_axis_of_its_own():
    found = axes(
        lambda m, x: m.mm(m.query.values, m.fc(x).view(-1, 2, 6, 4)),
        mm=MatMul(True),
        fc=nn.Linear(8, 8),
        query=Constant(1, 2, 3, 4),
    )
    assert found.of("mm") == Axes((None, 0))
    assert not found.of("mm").constant
    shared = axes(lambda m, x: m.fc(x) + m.fc(m.query.values), fc=nn.Linear(8, 8), query=Constant(1, 8))
    assert [shared.of("fc", call) for call in range(3)] == [Axes((0,)), Axes((None,)), Axes()]


PROBLEMS = {
    "mean over the batch": (lambda m, x: m.fc(x.mean(0)) + x, "reads a mixture of the examples of a batch"),
    "one by one": (
        lambda m, x: torch.stack([m.fc(each) for each in x]),
        "is called as often as the batch has examples",
    ),
    "heads first": (
        lambda m, x: x + m.softmax(m.fc(x).view(len(x), 6, 2, 4).transpose(0, 2)).sum(),
        "has the examples of a batch behind the first axis, where heads and tokens are expected",
    ),
    "pairs": (
        lambda m, x: m.fc(x.unsqueeze(0) + x.unsqueeze(1)).mean(0),
        "reads a tensor without an axis that counts the examples of a batch",
    ),
}


@pytest.mark.parametrize("what", PROBLEMS)
def test_what_mixes_examples_is_said(what):
    function, problem = PROBLEMS[what]
    found = axes(function, fc=nn.Linear(8, 8), softmax=nn.Softmax(-1)).problems()
    assert found == {"softmax" if what == "heads first" else "fc": problem}


def test_a_model_for_one_example_has_its_batch_on_the_first_axis():
    found = axes(lambda m, x: m.fc(x.reshape(48)), fc=nn.Linear(48, 8))
    assert found.of("fc") == Axes()
    assert found.of("fc").of(0) == 0
    assert not found.any_constant


def test_integers_are_not_mirrored():
    tokens = torch.tensor([[1, 2, 3, 0]])
    found = axes(lambda m, x: m.fc(m.table(x)), tokens, table=nn.Embedding(4, 8), fc=nn.Linear(8, 8))
    assert found.of("fc") == Axes((0,))
