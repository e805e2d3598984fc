"""Random numbers that follow from the seed and a position in the training, and from nothing before it."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from torch.utils.data import DataLoader, Dataset, get_worker_info

# The streams of random numbers. Each number of a stream begins a sequence of its own.
_STEPS, _DRAWS, _VIEWS = 0, 1, 2


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Seed Python, numpy and torch on all devices for one training iteration of one process."""
    torch.manual_seed(_seed_numpy_and_python(seed, _STEPS, iteration, rank))


def seed_view(image: int, view: int) -> None:
    """Seed Python, numpy and torch on the CPU for one of the views of an image, the same in every run."""
    torch.default_generator.manual_seed(_seed_numpy_and_python(0, _VIEWS, image, view))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Let a block draw random numbers of Python, numpy and torch on the CPU, and put their states back."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class SeededDraws(Dataset):
    """A data set whose ``n``-th draw of the training has the ``n``-th random numbers.

    Other attributes, such as ``metainfo``, are those of the data set within.

    Args:
        dataset: The data set within.
        sampler: The sampler that draws from it. Its seed is the seed of the random numbers.
        batch_size: The number of samples in a batch of one process.
        first_batch: The number of batches that each process had drawn before an interruption.
    """

    def __init__(self, dataset: Any, sampler: InfiniteSampler, batch_size: int, first_batch: int) -> None:
        self.dataset = dataset
        # Not the sampler, which cannot be sent to workers that are spawned.
        self.seed, self.rank, self.world_size = sampler.seed, sampler.rank, sampler.world_size
        self.batch_size = batch_size
        self.next_batch = first_batch
        self.is_in_worker = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):  # pickle asks for some before there is a data set
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Return a sample with whatever random numbers come next."""
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples of this process's next batch, which torch asks for by this method."""
        worker = get_worker_info()
        if worker is not None and not self.is_in_worker:  # the loader gives each worker every n-th batch
            self.is_in_worker = True
            self.next_batch += worker.id
        samples = []
        for position, index in enumerate(indices):
            # All processes together draw one sequence, the sampler gives each every n-th.
            draw = (self.next_batch * self.batch_size + position) * self.world_size + self.rank
            # Without the GPUs' generators, which no augmentation uses and no worker may touch.
            torch.default_generator.manual_seed(_seed_numpy_and_python(self.seed, _DRAWS, draw))
            samples.append(self.dataset[index])
        self.next_batch += 1 if worker is None else worker.num_workers
        return samples


def loader_over(loader: DataLoader, dataset: Dataset) -> DataLoader:
    """Return a data loader over another data set, with the same sampler and the same settings."""
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        sampler=loader.sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        pin_memory_device=loader.pin_memory_device,
        in_order=loader.in_order,
    )


def _seed_numpy_and_python(seed: int, *key: int) -> int:
    """Seed numpy and Python, and return a seed for torch."""
    words = [int(word) for word in np.random.SeedSequence(seed, spawn_key=key).generate_state(6)]
    np.random.seed(words[:4])
    random.seed(words[4])
    return words[5]
