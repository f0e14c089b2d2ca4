"""The model that a configuration benchmarks, for which neither weights nor data need be there."""

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from maft_jax.config import Config
from maft_jax.convert.formats import ClipWeights
from maft_jax.models.clip import CLIP_SIZES, ClipConfig
from maft_jax.models.encoder_setup import make_encoder
from maft_jax.models.mask_reader import Tower, with_modules
from maft_jax.resolved_config import ResolvedConfig, resolve
from maft_jax.runtime import sharding
from maft_jax.training.step_setup import tuned_tree
from maft_jax.weights import RANDOM_PREFIX, is_here, open_weights, size_named_by


@dataclasses.dataclass(frozen=True)
class BenchmarkModel:
    """A configuration without anything left open, and its weights."""

    config: ResolvedConfig
    mesh: Mesh
    clip: ClipConfig
    parameters: dict
    """The whole CLIP on the host."""
    weights: str
    """In words."""

    @property
    def tower(self) -> Tower:
        """The image tower on the host, with modules as a run begins with them, where its method
        reads masks with some.
        """
        tree, visual = tuned_tree(self.config), self.parameters["visual"]
        begun = tree.begin(self.clip.vision, visual)
        return with_modules(visual, tree.read_with(tree.modules(begun)))

    @property
    def device(self) -> jax.Device:
        """One of those that are measured, which are all of one kind."""
        return self.mesh.devices.flat[0]

    @property
    def devices(self) -> tuple[str, str, int]:
        """Their platform, their kind, and how many."""
        return self.device.platform, self.device.device_kind, self.mesh.size

    def peak_bytes(self) -> int | None:
        """Most memory that was in use on `device`; None where it does not tell, as on CPUs."""
        return (self.device.memory_stats() or {}).get("peak_bytes_in_use")

    def on_devices(self, tower: Tower) -> Tower:
        """The image tower, spread over the mesh as in training."""
        return jax.device_put(
            tower, sharding.tree_shardings(tower, self.mesh, self.clip.vision.sharding_rules)
        )


def load_model(config: Config, devices: Sequence[jax.Device] | None = None) -> BenchmarkModel:
    """Reads the weights and arranges the devices, all of them unless given.

    Raises:
        ValueError: weights, mesh or settings of the model cannot work, or it is a generator, a run
            with modules of its method, or not label maps that are evaluated.
    """
    if config.task == "train_generator":
        raise ValueError(
            f"config.task={config.task}: steps and evaluations of generators are not benchmarked "
            "yet; take a configuration that trains CLIP, such as --config=configs/coco.py"
        )
    if config.evaluation.task != "semantic":
        raise ValueError(
            f"config.evaluation.task={config.evaluation.task}: label maps are what is timed; leave "
            "it out"
        )
    mesh = sharding.make_mesh(config.mesh, devices)
    weights, described = open_weights_or_random(config.model.pretrained, **config.model.stated)
    if weights.modules is not None:
        raise ValueError(
            f"config.model.pretrained={config.model.pretrained}: its method trained modules beside "
            "the tower; give the run's tuned.safetensors and config.method, whose modules are "
            "timed with the values that they begin with"
        )
    clip = weights.config
    config = resolve(config, clip, weights.masking, mesh)
    if (method := tuned_tree(config).method) is not None:
        method.check(make_encoder(config.model, clip.vision, mesh, config.loss.logit_scale))
    return BenchmarkModel(config, mesh, clip, weights.parameters(), described)


def open_weights_or_random(pretrained: str, **stated) -> tuple[ClipWeights, str]:
    """The weights, or where there is no such file random ones of the size that its name says.

    The time of a step does not depend on the values. The second result says what it is; `stated` is
    what open_weights is told of weights that are there.

    Raises:
        ValueError: neither a file nor the name of a published size, or a corrupt file.
    """
    if is_here(pretrained):
        return open_weights(pretrained, **stated, needs_text=True), pretrained
    size = size_named_by(pretrained)
    if size is None:
        raise ValueError(
            f"config.model.pretrained={pretrained}: there is no such file, and its name is not "
            f"that of a size to draw random weights of, {sorted(CLIP_SIZES)}; give one of them "
            f"as {RANDOM_PREFIX}SIZE"
        )
    described = f"random {size}, since there is no file {pretrained}"
    return open_weights(f"{RANDOM_PREFIX}{size}"), described
