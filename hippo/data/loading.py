"""Batches of augmented patches, in an order that depends only on the seed."""

from hippo.data.augment import augment
from hippo.processes import ignore_interrupts, rank, world_size

import numpy as np
import torch


class AugmentedDataset(torch.utils.data.Dataset):
    """Training volumes or slices in memory. An item is an augmented patch: image (1, *patch) float32 and label
    (*patch) uint8.

    images, labels: lists of arrays; patch: its shape; augmentation: {name: strength}, see augment.augment. The key of an
    item is (number of the pass, index of the volume), as EpochSampler yields it. Its random numbers depend only on the
    seed and the key, so they do not change with the number of workers or when a run is resumed.
    """

    def __init__(self, images, labels, patch, seed, augmentation):
        self.images, self.labels = images, labels
        self.patch, self.seed, self.augmentation = tuple(patch), seed, augmentation

    def __len__(self):
        return len(self.images)

    def __getitem__(self, key):
        number, index = key
        rng = np.random.default_rng([self.seed, number, index])
        return augment(self.images[index], self.labels[index], self.patch, rng, **self.augmentation)


class EpochSampler:
    """Yields batches of keys (pass, index): each index once per pass, in an order that depends only on (seed, pass).

    length: number of items. An epoch is one pass over them or, with few, as many passes as give `min_steps` batches.
    Set `epoch`, and `start` (the number of batches that a resumed epoch skips), before iterating. With several processes,
    process `rank` of `world` takes every world-th key of each batch. A process without a sample repeats the first one,
    with weight 0.
    """

    def __init__(self, length, batch_size, seed, min_steps=1, rank=0, world=1):
        self.length, self.batch_size, self.seed, self.epoch, self.start = length, batch_size, seed, 0, 0
        self.rank, self.world = rank, world
        self.batches = -(-length // batch_size)  # batches per pass
        self.passes = max(1, -(-min_steps // self.batches))

    def __len__(self):
        return self.passes * self.batches

    def __iter__(self):
        drawn = None
        for step in range(self.start, len(self)):
            number, batch = self.epoch * self.passes + step // self.batches, step % self.batches
            if number != drawn:
                order, drawn = np.random.default_rng([self.seed, number]).permutation(self.length), number
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            mine = chosen[self.rank :: self.world]
            yield [(number, int(i)) for i in (mine if len(mine) else chosen[:1])]

    def weight(self, step):
        """Returns the weight of this process's mean loss in the mean over processes: its share of the batch times
        their number."""
        size = min(self.batch_size, self.length - step % self.batches * self.batch_size)
        return len(range(self.rank, size, self.world)) / size * self.world


def make_loader(data, cfg, device):
    """Returns a loader of batches (image (B, 1, *patch), label (B, *patch)) of an AugmentedDataset, or of another
    training set with keys (pass, index). cfg: batch_size, seed, min_steps and num_workers."""
    return torch.utils.data.DataLoader(
        data,
        batch_sampler=EpochSampler(len(data), cfg.batch_size, cfg.seed, cfg.min_steps, rank(), world_size()),
        num_workers=cfg.num_workers,
        persistent_workers=cfg.num_workers > 0,
        worker_init_fn=ignore_interrupts,
        multiprocessing_context="spawn" if cfg.num_workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # a separate generator: a resumed epoch draws from it once more, which must not affect dropout
    )
