"""What a run's tree of parameters holds: the image tower, what LoRA adds to it, and modules."""

import dataclasses
import re
from collections.abc import Mapping

import jax

from maft_jax.config import Config
from maft_jax.convert.method_modules import read_modules, reader_noted
from maft_jax.hub.local_files import local_path
from maft_jax.methods.method import Method
from maft_jax.methods.registry import make_method
from maft_jax.models.adapters import low_rank
from maft_jax.models.encoder import ImageArchitecture, ImageEncoder
from maft_jax.models.mask_reader import Modules
from maft_jax.runtime import tree_rules
from maft_jax.state.train_state import overlay

VISUAL, EXTRA = "visual", "extra"
_BEGINNING = re.compile(r"(?<![\[\\])\^")
"""In a rule, the beginning of a path; ^ has another meaning in [^...] and as \\^."""


@dataclasses.dataclass(frozen=True)
class TunedTree:
    """The tree is the tower itself, as in version 0.1, or {"visual": tower, "extra": modules}.

    With LoRA the tower has two factors beside each kernel that is tuned, and these alone are
    trained; `visual` gives the tower with their product added, in which no factor is left.
    """

    method: Method | None = None
    lora_rank: int = 0
    """0: none."""
    lora_alpha: float = 0.0
    tuned_kernels: tuple[str, ...] = ()
    """Rules that choose the kernels with factors."""
    seed: int = 0
    """Of what begins at random."""

    @classmethod
    def of(cls, config: Config, trainable: tuple[str, ...]) -> "TunedTree":
        """As the settings say; `trainable` are decided rules over the tower's paths."""
        settings = config.optimizer
        return cls(
            make_method(config),
            settings.lora_rank,
            settings.lora_alpha if settings.lora_rank else 0.0,
            trainable if settings.lora_rank else (),
            config.seed,
        )

    @property
    def has_modules(self) -> bool:
        return self.method is not None and self.method.has_modules

    def describe(self) -> str | None:
        """What a run that resumes must find again; None as before there was anything but MAFT."""
        return None if self == dataclasses.replace(THE_TOWER, seed=self.seed) else repr(self)

    def begin(self, vision: ImageArchitecture, visual: Mapping) -> Mapping:
        """The tree before the first step, of pretrained weights or their shapes.

        Raises:
            ValueError: there is nothing that LoRA can tune, or a rule chooses something else.
        """
        of_modules, of_factors = jax.random.split(jax.random.key(self.seed))
        if self.lora_rank:
            low_rank.check_has_kernels(visual)
            chosen = tree_rules.select(
                self.tuned_kernels, visual, where="config.optimizer.trainable"
            )
            factors = low_rank.init_factors(tree_rules.flatten(chosen), self.lora_rank, of_factors)
            visual = tree_rules.unflatten({**tree_rules.flatten(visual), **factors})
        if not self.has_modules:
            return visual
        return {VISUAL: visual, EXTRA: self.method.init_modules(vision, of_modules)}

    def read_modules(self, vision: ImageArchitecture, path: str) -> dict:
        """The method's own parameters of a file, or of a name of the hub.

        Raises:
            ValueError: the method has none, or the file other ones, or those of a run whose
                settings read masks in another way.
        """
        if not self.has_modules:
            raise ValueError(
                f"config.model.modules={path}: nothing but the tower is trained by config.method "
                "as it is configured; leave it empty"
            )
        file = local_path(path)
        noted, reader = reader_noted(file), self.method.reader
        if noted is not None and noted != repr(reader):
            raise ValueError(
                f"config.model.modules={path}: the run that left them read masks with {noted}, and "
                f"these settings with {reader!r}; set config.method and config.loss as it had them"
            )
        expected = jax.eval_shape(lambda: self.method.init_modules(vision, jax.random.key(0)))
        return read_modules(file, self.method.module_rules, expected)

    def rules(self, trainable: tuple[str, ...]) -> tuple[str, ...]:
        """Those over the tree's paths, of rules over the tower's."""
        if self.lora_rank:
            trainable = (rf"/({'|'.join(low_rank.FACTORS)})$",)
        if not self.has_modules:
            return trainable
        below = (_BEGINNING.sub(f"^{VISUAL}/", rule) for rule in trainable)
        return (*below, f"^{EXTRA}/")

    def tower_path(self, path: str) -> str:
        """Of a path of the tree the tower's: of a factor its kernel's; of a module its own."""
        path = path.removeprefix(f"{VISUAL}/") if self.has_modules else path
        module, _, name = path.rpartition("/")
        return f"{module}/kernel" if self.lora_rank and name in low_rank.FACTORS else path

    def visual(self, tree: Mapping) -> Mapping:
        """The image tower alone."""
        visual = tree[VISUAL] if self.has_modules else tree
        return low_rank.merge(visual, self.lora_alpha) if self.lora_rank else visual

    def modules(self, tree: Mapping) -> Mapping:
        """The method's own parameters alone."""
        return tree[EXTRA] if self.has_modules else {}

    def read_with(self, modules: Mapping) -> Modules | None:
        """What of a method goes with the tower when masks are read; None: the tower is all."""
        if self.method is None or self.method.reader is None:
            return None
        return Modules(modules, self.method.reader)

    def in_compute_dtype(self, encoder: ImageEncoder, tree: Mapping) -> Mapping:
        """The tree with a tower whose weights are rounded as products read them.

        Modules are not; nor is what LoRA adds to, before it is added.
        """
        visual = tree.get(VISUAL, {}) if self.has_modules else tree
        if self.lora_rank:
            rounded = tree_rules.flatten(encoder.in_compute_dtype(visual))
            leaves = tree_rules.flatten(visual)
            kept = low_rank.paths_of_factors_and_kernels(leaves)
            visual = tree_rules.unflatten(rounded | {path: leaves[path] for path in kept})
        else:
            visual = encoder.in_compute_dtype(visual)
        return {**tree, VISUAL: visual} if self.has_modules else visual

    def student(
        self, encoder: ImageEncoder, pretrained: Mapping, trainable: Mapping
    ) -> tuple[Mapping, Mapping]:
        """The tower that a step computes with, rounded, and the modules."""
        tree = overlay(
            self.in_compute_dtype(encoder, pretrained), self.in_compute_dtype(encoder, trainable)
        )
        visual = self.visual(tree)
        if self.lora_rank:
            visual = encoder.in_compute_dtype(visual)
        return visual, self.modules(tree)


THE_TOWER = TunedTree()
"""Without modules and factors: MAFT, as it always was."""
