"""The flags --generator and --proposals of commands that segment pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from absl import flags

from maft_jax.cli import command_line

if TYPE_CHECKING:
    from maft_jax.proposals.generator import ProposalGenerator


@dataclass(frozen=True)
class GeneratorFlags:
    """What makes the proposals of pictures."""

    chosen: flags.FlagHolder
    weights: flags.FlagHolder
    with_path: str
    """The generator of a path without --generator."""
    clip: flags.FlagHolder

    @property
    def path(self) -> str:
        """--proposals; for freeseg without it --weights, since its checkpoints hold a CLIP, too."""
        if not self.weights.value and self.chosen.value == "freeseg":
            return self.clip.value
        return self.weights.value

    def make(self, names: Sequence[str] = ()):
        """The generator that they say; `names` are for one that reads them.

        Raises:
            ValueError: they contradict each other, or what lies at the path cannot be used.
        """
        # Imported late: --help and wrong flags answer at once.
        from maft_jax.config.sections import ProposalsConfig
        from maft_jax.proposals.generators import make_generator

        path = self.path
        name = self.chosen.value or (self.with_path if path else "superpixels")
        if bool(path) != (name != "superpixels"):
            raise ValueError(
                f"--generator={name} and --proposals={path}: superpixels take no path, all others "
                "need one"
            )
        try:
            return make_generator(ProposalsConfig(generator=name, path=path), names)
        except ValueError as error:
            raise ValueError(str(error).replace("config.proposals.path", "--proposals")) from error

    def make_for_any_names(self) -> Callable[[Sequence[str]], "ProposalGenerator"]:
        """`make`, or what returns one generator for all names, if that reads none.

        Raises:
            ValueError: as `make`, now.
        """
        generator = self.make(["a name"])
        reads_names = generator.name == "freeseg" or getattr(generator, "reads_names", False)
        return self.make if reads_names else lambda names: generator


def define(
    choices: Sequence[str], default: str, path: str, clip: flags.FlagHolder
) -> GeneratorFlags:
    """Defines them; `default` and `path` are for their help, `clip` is the flag --weights."""
    return GeneratorFlags(
        flags.DEFINE_enum(
            "generator", None, choices, f"what makes the proposals; default: {default}"
        ),
        command_line.define_path("proposals", "", path),
        "external" if "external" in choices else "superpixels",
        clip,
    )
