"""The generators that `config.proposals.generator` chooses from."""

from collections.abc import Callable, Sequence

from maft_jax.config.sections import ProposalsConfig
from maft_jax.proposals.external import ExternalProposals
from maft_jax.proposals.generator import ProposalGenerator
from maft_jax.proposals.ground_truth import GroundTruthProposals
from maft_jax.proposals.superpixels import SuperpixelProposals
from maft_jax.proposals.transformers_models import TransformersProposals

GENERATORS: dict[str, Callable[[ProposalsConfig, tuple[str, ...]], ProposalGenerator]] = {
    "superpixels": lambda config, class_names: SuperpixelProposals(),
    "ground_truth": lambda config, class_names: GroundTruthProposals(config.kinds),
    "external": lambda config, class_names: ExternalProposals(config.path),
    "transformers": lambda config, class_names: TransformersProposals(config.path, class_names),
    "mask2former": lambda config, class_names: _of_family(config, class_names),
    "maskformer": lambda config, class_names: _of_family(config, class_names),
    "freeseg": lambda config, class_names: _of_family(config, class_names),
}


def _of_family(config: ProposalsConfig, class_names: tuple[str, ...]) -> ProposalGenerator:
    # Imported late: processes that make other proposals do not load JAX.
    from maft_jax.proposals.mask2former_family import open_family_generator

    return open_family_generator(config.generator, config.path, class_names)


def make_generator(config: ProposalsConfig, class_names: Sequence[str]) -> ProposalGenerator:
    """The generator that the configuration names; `class_names` are for those that read text.

    Raises:
        ValueError: there is no such generator, or it cannot work with these settings.
    """
    if config.generator not in GENERATORS:
        raise ValueError(
            f"config.proposals.generator: expected one of {list(GENERATORS)}, got "
            f"{config.generator!r}"
        )
    return GENERATORS[config.generator](config, tuple(class_names))
