"""What a set of records says about itself, seen with a configuration."""

from collections.abc import Mapping

from maft_jax.config.sections import DataConfig

PUBLISHED = "published"
"""Entry of config.data.unseen_classes that stands for the data set's own zero-shot split."""

SYNONYMS = "synonyms"
"""Key of the further names of classes that have some, by name, where there are any."""


def synonyms(data: DataConfig, description: Mapping) -> dict[str, list[str]]:
    """Further names of the classes that have some; none where config.data.synonyms says so."""
    return description.get(SYNONYMS, {}) if data.synonyms else {}


def unseen_classes(data: DataConfig, description: Mapping) -> tuple[str, ...]:
    """Names of the classes that training must not see.

    Raises:
        ValueError: "published" for a data set without a published split.
    """
    if PUBLISHED not in data.unseen_classes:
        return data.unseen_classes
    if not description["unseen_classes"]:
        raise ValueError(
            f"config.data.unseen_classes: {description['dataset']} has no published zero-shot "
            "split; list the names of the classes to leave out"
        )
    named = [name for name in data.unseen_classes if name != PUBLISHED]
    return tuple(dict.fromkeys([*description["unseen_classes"], *named]))
