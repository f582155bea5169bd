"""Seeding by what is done."""

import torch

from qplug.core.seeding import seeded


def test_the_same_key_gives_the_same_draw_and_the_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    with seeded(0, "a"):
        first = torch.rand(4)
    torch.testing.assert_close(torch.get_rng_state(), before)
    with seeded(0, "a"):
        assert torch.equal(torch.rand(4), first)
    with seeded(0, "b"):
        assert not torch.equal(torch.rand(4), first)


def test_seeding_queues_nothing_for_a_gpu_that_is_not_there():
    if torch.cuda.is_initialized():
        return
    queued = len(torch.cuda._queued_calls)
    with seeded("x"):
        torch.rand(1)
    assert len(torch.cuda._queued_calls) == queued
