"""The generators that `config.proposals.generator` chooses from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from maft_jax.config.sections import ProposalsConfig
from maft_jax.hub.local_files import local_path
from maft_jax.proposals.external import ExternalProposals
from maft_jax.proposals.generator import ProposalGenerator
from maft_jax.proposals.ground_truth import GroundTruthProposals
from maft_jax.proposals.superpixels import SuperpixelProposals
from maft_jax.proposals.transformers_models import TransformersProposals

Synonyms = Mapping[str, Sequence[str]]

GENERATORS: dict[str, Callable[[ProposalsConfig, tuple[str, ...], Synonyms], ProposalGenerator]] = {
    "superpixels": lambda config, names, synonyms: SuperpixelProposals(),
    "ground_truth": lambda config, names, synonyms: GroundTruthProposals(config.kinds),
    "external": lambda config, names, synonyms: ExternalProposals(config.path),
    "transformers": lambda config, names, synonyms: TransformersProposals(config.path, names),
    "mask2former": lambda config, names, synonyms: _of_family(config, names),
    "maskformer": lambda config, names, synonyms: _of_family(config, names),
    "freeseg": lambda config, names, synonyms: _of_family(config, names),
    "fcclip": lambda config, names, synonyms: _fcclip(config, names, synonyms),
}


def _of_family(config: ProposalsConfig, class_names: tuple[str, ...]) -> ProposalGenerator:
    # Imported late: processes that make other proposals do not load JAX.
    from maft_jax.proposals.mask2former_family import open_family_generator

    return open_family_generator(config.generator, config.path, class_names)


def _fcclip(
    config: ProposalsConfig, class_names: tuple[str, ...], synonyms: Synonyms
) -> ProposalGenerator:
    from maft_jax.proposals.fcclip import open_fcclip_generator  # late, likewise

    return open_fcclip_generator(config.path, class_names, synonyms)


def make_generator(
    config: ProposalsConfig, class_names: Sequence[str], synonyms: Synonyms | None = None
) -> ProposalGenerator:
    """The generator that the configuration names; names of classes are for those that read text.

    `synonyms` are further names of some classes, which fcclip alone reads. A path may be a name of
    the hub, whose files are downloaded here, once for all processes that make proposals.

    Raises:
        ValueError: there is no such generator, or it cannot work with these settings.
    """
    if config.generator not in GENERATORS:
        raise ValueError(
            f"config.proposals.generator: expected one of {list(GENERATORS)}, got "
            f"{config.generator!r}"
        )
    config = dataclasses.replace(config, path=local_path(config.path))
    return GENERATORS[config.generator](config, tuple(class_names), synonyms or {})
