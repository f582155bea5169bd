"""Batches and augmentation depend only on seed, epoch and index."""

import random

import numpy as np
import pytest
import torch

from qplug import InputError
from qplug.core.distributed import Processes
from qplug.data.digits import DigitImages
from qplug.models.float_model import Preprocessing
from qplug.training.supervised.augment import transform
from qplug.training.supervised.config import Augment, FineTune
from qplug.training.supervised.images import TrainingImages

GREY = Preprocessing((1, 8, 8), (0.3,), (0.4,), "bilinear", 1.0)
RGB = Preprocessing((3, 8, 8), (0.3,) * 3, (0.4,) * 3, "bilinear", 1.0)


def images(count=50, seed=0, preparation=GREY, **settings):
    settings = FineTune(**{"epochs": 2, "batch_size": 16, "augment": None, **settings})
    return TrainingImages(DigitImages("train", range(count)), preparation, settings, seed)


def batches(found, first=0, count=1):
    """Every batch, joined from the parts of ``count`` processes."""
    streams = [found.parts(first, Processes(index, count)) for index in range(count)]
    return [[torch.cat(column) for column in zip(*rows, strict=True)] for rows in zip(*streams, strict=True)]


def content(inputs, labels):
    """A representation of a batch that does not depend on its order."""
    return sorted(zip(inputs.flatten(1).tolist(), labels.tolist(), strict=True))


def test_an_epoch_is_a_permutation_and_the_next_has_another_order():
    found = images()
    places = list(found._indices(0, Processes()))
    assert len(places) == 2 * found.steps == 6
    first, second = ([index for batch in places[i : i + 3] for _, index in batch] for i in (0, 3))
    assert len(set(first)) == len(first) == 48
    assert first != second
    assert [epoch for batch in places for epoch, _ in batch] == [0] * 48 + [1] * 48


@pytest.mark.parametrize(("parts", "count"), [(1, 2), (3, 1), (2, 2), (5, 3)])
def test_a_batch_does_not_depend_on_parts_and_processes(parts, count):
    augment = Augment(scale=(0.6, 1.0))
    whole = batches(images(augment=augment))
    shared = batches(images(augment=augment, accumulate=parts), count=count)
    for step, (inputs, labels) in enumerate(whole):
        parts_of_batch = shared[step * parts : (step + 1) * parts]
        found, their = (torch.cat(column) for column in zip(*parts_of_batch, strict=True))
        assert content(found, their) == content(inputs, labels)


def test_a_later_start_continues_the_same_batches():
    augment = Augment(scale=(0.6, 1.0), erase=0.5)
    all_of_them, rest = batches(images(augment=augment)), batches(images(augment=augment), first=4)
    assert len(rest) == 2
    for (inputs, labels), (again, same) in zip(all_of_them[4:], rest, strict=True):
        assert torch.equal(inputs, again)
        assert torch.equal(labels, same)


def test_augmentation_depends_on_the_epoch_and_restores_the_generators():
    found = images(augment=Augment(scale=(0.3, 1.0), color_jitter=0.0))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first, again, later = found[0, 3][0], found[0, 3][0], found[1, 3][0]
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("preparation", [GREY, RGB])
@pytest.mark.parametrize("policy", [None, "rand-m9-mstd0.5-inc1", "original", "augmix-m3"])
def test_timms_policies_work_on_grey_images(preparation, policy):
    found = images(preparation=preparation, augment=Augment(auto_augment=policy))
    assert found[0, 0][0].shape == preparation.input_size
    assert found[0, 0][0].dtype == torch.float32


@pytest.mark.parametrize("policy", ["rand-m10-n3-inc1", "original", "augmix-m10"])
def test_the_strongest_posterizing_keeps_one_bit(policy):
    """Pillow 13 refuses 0 bits, which timm requests at a strength of 10."""
    apply = transform(RGB, Augment(auto_augment=policy))
    image = DigitImages("train", range(1))[0][0]
    for draw in range(200):
        random.seed(draw)
        assert apply(image).isfinite().all()


def test_a_policy_that_timm_does_not_know_is_refused():
    with pytest.raises(InputError, match="timm refuses this augmentation"):
        transform(RGB, Augment(auto_augment="hand-made"))


def test_held_out_images_are_not_trained_on():
    found = images(hold_out=10)
    assert len(found.held_out) == 10
    assert not set(found.held_out) & set(found.trained.tolist())
    assert sum(len(labels) for _, labels in found.held_out_batches()) == 10
    assert images(hold_out=10, seed=1).held_out != found.held_out


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(InputError, match="a batch needs 16 images, and there are 20 images, 8 of them held out"):
        images(20, hold_out=8)


def test_workers_do_not_change_the_batches():
    augment = Augment(scale=(0.6, 1.0))
    alone, beside = batches(images(augment=augment)), batches(images(augment=augment, workers=1))
    for (inputs, _), (same, _) in zip(alone, beside, strict=True):
        assert torch.equal(inputs, same)
