"""A device that is not there is named as that."""

from __future__ import annotations

import pytest
import torch

from qplug import InputError
from qplug.core.device import parse_device


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_without_a_gpu_none_is_proposed(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="this machine has no GPU that torch can use") as error:
        parse_device(name)
    assert "cuda" not in error.value.fix
    assert error.value.where == "--device"


def test_why_torch_finds_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(InputError, match="is built for CPUs only"):
        parse_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(InputError, match="torch finds none"):
        parse_device("cuda")


def test_a_gpu_beyond_those_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="expected cuda:0 to cuda:1, received 'cuda:2': this machine has 2 GPUs"):
        parse_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda0", "", "cuda:-1", "cpu:x"])
def test_what_is_no_device(name):
    with pytest.raises(InputError, match=f"device '{name}' cannot be used: expected a device such as cpu, cuda"):
        parse_device(name)


@pytest.mark.parametrize("name", ["mps", "xpu"])
def test_another_kind_that_is_not_there(name):
    if getattr(torch, name).is_available():
        pytest.skip("it is there")
    with pytest.raises(InputError, match=f"device '{name}' cannot be used") as error:
        parse_device(name)
    assert error.value.fix == "use cpu"


def test_the_processor_is_always_there():
    assert parse_device("cpu") == torch.device("cpu")
