"""What the pipelines ask of their arguments and of every example, before it goes into a batch."""

from input_pipeline.examples import IGNORE, PreparedExample, PreparedSource


def check_example(example: PreparedExample, source: PreparedSource) -> None:
    """Raises ValueError where an example contradicts itself or what its source says of all."""
    size = example.image.shape[:2]
    if example.label_map.shape != size:
        raise ValueError(
            f"{example.example_id}: expected a label map of the size of the image, "
            f"{size[1]}x{size[0]}, got {example.label_map.shape[1]}x{example.label_map.shape[0]}"
        )
    if len(example.proposals) > source.num_proposals:
        raise ValueError(
            f"{example.example_id}: has {len(example.proposals)} proposals, but its source says "
            f"that no example has more than {source.num_proposals}"
        )
    last_class = len(source.class_names) - 1
    lowest, highest = example.label_map.min(), example.label_map.max()
    if lowest < IGNORE or highest > last_class:
        raise ValueError(
            f"{example.example_id}: expected labels {IGNORE} (ignored) to {last_class}, got "
            f"{lowest} to {highest}"
        )


def check_batching(
    source: PreparedSource,
    global_batch_size: int,
    process_index: int,
    process_count: int,
) -> None:
    """Raises ValueError where the rows cannot be shared among the processes, or there are none."""
    if global_batch_size < 1 or global_batch_size % process_count:
        raise ValueError(
            f"global_batch_size: expected a positive multiple of the {process_count} processes, "
            f"got {global_batch_size}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index: expected 0 .. {process_count - 1}, got {process_index}")
    if len(source) == 0 or source.num_proposals < 1:
        raise ValueError(
            f"source: expected at least one example and one proposal, got {len(source)} examples "
            f"and {source.num_proposals} proposals"
        )
