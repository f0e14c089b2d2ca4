"""A part of a source: the first examples of a data set, or those that are still to do."""

from input_pipeline.examples import Example, ExampleSource, PreparedExample, PreparedSource


class ExampleRange:
    """Examples start .. stop - 1 of a PreparedSource, itself one with the same bounds.

    Raises ValueError where that is no range of the source.
    """

    def __init__(self, source: PreparedSource, start: int, stop: int):
        self._source = source
        self._indices = _checked_range(start, stop, len(source))
        self.class_names = source.class_names
        self.example_ids = source.example_ids[start:stop]
        self.fingerprint = f"{source.fingerprint}[{start}:{stop}]"
        self.num_proposals = source.num_proposals
        self.max_classes_per_image = source.max_classes_per_image
        self.image_sizes = source.image_sizes[start:stop]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> PreparedExample:
        return self._source[self._indices[index]]


class FirstExamples:
    """The first `count` examples of an ExampleSource, itself one.

    Raises ValueError where there are fewer.
    """

    def __init__(self, source: ExampleSource, count: int):
        self._source = source
        self._indices = _checked_range(0, count, len(source))
        self.class_names = source.class_names
        self.example_ids = source.example_ids[:count]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._indices[index]]

    def image_bytes(self, index: int) -> bytes:
        return self._source.image_bytes(self._indices[index])

    def signature(self, index: int) -> str:
        return self._source.signature(self._indices[index])


def _checked_range(start: int, stop: int, length: int) -> range:
    if not 0 <= start <= stop <= length:
        raise ValueError(f"expected a range of {length} examples, got {start} to {stop}")
    return range(start, stop)
