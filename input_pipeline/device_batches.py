"""From the batches of each process to global arrays on the devices of all processes."""

from collections import deque
from collections.abc import Iterator
from itertools import islice

import jax
import numpy as np


def to_global_batches(
    batches: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.Sharding, prefetch: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Yields batches as global arrays, `prefetch` of them on their way ahead of the consumer.

    Each process passes its own rows; `sharding` spreads the first axis over the devices.
    """

    def to_global(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {
            key: jax.make_array_from_process_local_data(sharding, rows)
            for key, rows in batch.items()
        }

    arrays = map(to_global, batches)
    in_flight = deque(islice(arrays, prefetch))
    while in_flight:
        in_flight.extend(islice(arrays, 1))
        yield in_flight.popleft()
