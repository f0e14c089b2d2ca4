"""Compiles a generator's step of configs/generator_coco.py at full size for machines not there.

    JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1 python -m tests.training.compile_generator_step v5e:4x4

prints the memory of a device in GiB by the compiler. It takes minutes, so no test starts it;
docs/generator_training.md has what it printed.
"""

# ruff: noqa: E402 - the environment comes before JAX
import sys

from maft_jax.planning.topology import parse_topology, prepare_environment

prepare_environment()

import jax
import numpy as np

from maft_jax.config import from_config_dict
from maft_jax.config.sections import MeshConfig
from maft_jax.configs.generator_coco import get_config
from maft_jax.runtime import sharding
from maft_jax.training.generator_architecture import make_architecture
from maft_jax.training.generator_task import make_generator_setup, resolve_generator
from maft_jax.training.training_data import batch_shapes

CLASSES, CLASSES_OF_AN_IMAGE = 171, 24


def main(topology: str) -> None:
    mesh = sharding.make_mesh(MeshConfig(), parse_topology(topology).devices())
    settings = get_config()
    settings.data.root = "coco"
    config = resolve_generator(from_config_dict(settings), mesh)
    architecture = make_architecture(config.generator, CLASSES, None)
    setup = make_generator_setup(config, architecture, mesh)
    parameters = jax.eval_shape(architecture.init, jax.random.key(0))
    state = jax.eval_shape(setup.init_state, parameters)
    frozen = jax.eval_shape(setup.frozen, parameters)
    batch = batch_shapes(config, CLASSES_OF_AN_IMAGE, CLASSES)
    batch = batch.replace(position=jax.ShapeDtypeStruct((config.batch_size,), np.int32))
    memory = setup.jitted(state, frozen).lower(state, frozen, None, batch).compile()
    memory = memory.memory_analysis()
    print(topology, f"{config.batch_size} images", f"crops of {config.data.crop_size}", end=": ")
    print(f"{memory.argument_size_in_bytes / 2**30:.2f} GiB of arguments", end=", ")
    print(f"{memory.temp_size_in_bytes / 2**30:.2f} GiB of temporaries")


if __name__ == "__main__":
    main(*sys.argv[1:])
