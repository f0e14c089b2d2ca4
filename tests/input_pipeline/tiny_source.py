"""A prepared source of small random scenes: different sizes and grids, and one has no proposals."""

import numpy as np

from input_pipeline.examples import PreparedExample, proposal_grid_size


class TinySource:
    class_names = ("wall", "floor", "cat")
    fingerprint = "tiny"
    max_classes_per_image = 3

    def __init__(self, num_examples=5, broken=()):
        self.example_ids = tuple(f"scene {i}" for i in range(num_examples))
        self.num_proposals = max(1, num_examples - 1)
        self.image_sizes = np.array(
            [(20 + 3 * i, 36 - i % 3) for i in range(num_examples)], np.int32
        )
        self.broken = broken
        self.num_reads = 0

    def __len__(self):
        return len(self.example_ids)

    def __getitem__(self, index):
        """Example i has i proposals, stored on a grid that is the finer the larger i is."""
        self.num_reads += 1
        if index in self.broken:
            raise ValueError(f"{self.example_ids[index]}: the file is torn")
        rng = np.random.default_rng(index)
        height, width = self.image_sizes[index].tolist()
        grid = proposal_grid_size(height + 8 * index, width)
        return PreparedExample(
            self.example_ids[index],
            rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
            np.repeat(np.arange(width) * 3 // width - 1, height)
            .reshape(width, height)
            .T.astype(np.int32),
            rng.integers(100, 256, (index, *grid)).astype(np.uint8),
            np.linspace(1, 0, index, dtype=np.float32),
        )
