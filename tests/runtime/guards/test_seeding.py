import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import InfiniteSampler
from torch.utils.data import Dataset

from bdd_seg.runtime.guards.seeding import SeededDraws, seed_step


class Draws(Dataset):
    """A data set whose samples are random numbers."""

    metainfo = {'classes': ('one',)}

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def seeded(rank=0, world_size=1, batch_size=2, first_batch=0, seed=3) -> SeededDraws:
    sampler = InfiniteSampler(Draws(), seed=seed)
    sampler.rank, sampler.world_size = rank, world_size
    return SeededDraws(Draws(), sampler, batch_size, first_batch)


def test_random_numbers_follow_from_the_number_of_the_draw():
    draws = seeded()
    first, second = draws.__getitems__([0, 1]), draws.__getitems__([0, 1])
    assert len({value for sample in first + second for value in sample[1:]}) == 12
    assert seeded(first_batch=1).__getitems__([0, 1]) == second
    shares = [seeded(rank, 2, batch_size=1).__getitems__([rank])[0] for rank in (0, 1)]
    assert shares == first
    assert seeded(seed=4).__getitems__([0, 1]) != first


def test_these_are_the_numbers_that_earlier_versions_drew():
    """Else a run that an earlier version began would not be resumed exactly."""
    (sample,) = seeded(batch_size=1).__getitems__([2])
    words = np.random.SeedSequence(3, spawn_key=(1, 0)).generate_state(6)
    generator = torch.Generator().manual_seed(int(words[5]))
    expected = (
        2,
        random.Random(int(words[4])).random(),
        np.random.RandomState(words[:4]).rand(),
        torch.rand((), generator=generator).item(),
    )
    assert sample == expected


def test_other_attributes_are_those_of_the_data_set_within():
    draws = seeded()
    assert draws.metainfo == {'classes': ('one',)}
    assert len(draws) == 5 and draws[3][0] == 3
    again = pickle.loads(pickle.dumps(draws))
    assert again.__getitems__([0, 1]) == draws.__getitems__([0, 1])
    with pytest.raises(AttributeError):
        _ = draws.absent


def test_steps_are_seeded_by_seed_iteration_and_rank():
    def numbers(*key):
        seed_step(*key)
        return torch.rand(()).item(), np.random.rand(), random.random()

    assert numbers(1, 5, 0) == numbers(1, 5, 0)
    keys = [(1, 5, 0), (1, 6, 0), (2, 5, 0), (1, 5, 1)]
    assert len({value for key in keys for value in numbers(*key)}) == 12
