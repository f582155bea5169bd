"""Seeds made of a key."""

import torch

from qplug.core.seeding import seeded


def test_the_same_key_gives_the_same_draw_and_the_state_of_the_generator_is_restored():
    before = torch.get_rng_state()
    with seeded(0, "a"):
        first = torch.rand(4)
    torch.testing.assert_close(torch.get_rng_state(), before)
    with seeded(0, "a"):
        assert torch.equal(torch.rand(4), first)
    with seeded(0, "b"):
        assert not torch.equal(torch.rand(4), first)


def test_seeding_queues_no_call_without_a_gpu():
    if torch.cuda.is_initialized():
        return
    queued = len(torch.cuda._queued_calls)
    with seeded("x"):
        torch.rand(1)
    assert len(torch.cuda._queued_calls) == queued
