"""Plans of training a generator: what is counted by formula, what is assumed, what is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maft_jax.config import from_config_dict
from maft_jax.config.generator_section import GeneratorConfig
from maft_jax.planning.generator_step import plan_generator_step, training_flops
from maft_jax.planning.products import product_flops
from maft_jax.runtime.sharding import one_device_mesh
from maft_jax.training.generator_architecture import make_architecture
from tests.planning.test_plan_command import planned
from tests.training.test_generator_training import SETTINGS, preset_with

TINY = (
    "--config=configs/generator_shapes_world.py",
    *(f"--config.{name}={value}" for name, value in SETTINGS.items()),
)


def test_products_are_counted_in_loops_and_branches_and_by_groups():
    def function(x, kernel):
        def body(carry, row):
            return carry @ carry, row @ carry

        x, rows = lax.scan(body, x, x)
        read = jax.checkpoint(lambda x: jnp.einsum("ij,kj->ki", x, rows))(x)
        read = lax.cond(read[0, 0] > 0, lambda x: x @ x, lambda x: x, read)
        image = jnp.broadcast_to(read, (1, 4, 4, 4)).reshape(1, 4, 4, 4)
        convolved = lax.conv_general_dilated(
            image,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )
        return jax.nn.relu(convolved)

    shapes = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((4, 4), (3, 3, 2, 6)))
    loop, product, convolution = 4 * (2 * 4**3 + 2 * 4**2), 2 * 4**3, 2 * (2 * 2 * 6) * (3 * 3 * 2)
    assert product_flops(function, *shapes) == loop + product + convolution


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "num_classes", "official"),
    [
        ({}, 133, 206),
        ({"backbone": "swin_base"}, 133, 433),
        # of 414, text folded into the interaction's projections: 53 instead of 122
        ({"backbone": "resnet101c", "decoder_layers": 10, "classes": "text"}, 171, 345),
    ],
)
def test_arithmetic_by_formula_is_that_of_the_official_networks(changes, num_classes, official):
    """GFLOP forward at 640 x 640, which the official code was run to count."""
    text_width = 512 if "classes" in changes else None
    own = None if text_width else num_classes
    architecture = make_architecture(GeneratorConfig(**changes), own, text_width)
    counted = training_flops(architecture, 640, num_classes)
    assert counted / 3e9 == pytest.approx(official, rel=0.01)


def planned_step(**changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return plan_generator_step(from_config_dict(preset_with(changes)), one_device_mesh())


def test_weights_that_are_not_there_have_the_sizes_of_the_settings():
    step = planned_step(generator__weights="runs/generator", data__root="nowhere")
    assert "6 queries, 2 decoder layers" in step.model and step.image_size == 64
    assert list(step.assumptions) == [
        "150 classes, since nowhere/classes.txt is not here",
        "runs/generator is not here: sizes are those of config.generator",
    ]


@pytest.mark.slow
def test_weights_that_are_there_have_their_own_sizes():
    settings = {"generator__weights": "built-in:shapes_world", "data__dataset": "shapes_world"}
    step = planned_step(**settings)
    assert "32 queries, 3 decoder layers" in step.model and step.assumptions == []


@pytest.mark.slow
def test_step_of_a_generator_on_tpus(tmp_path):
    """Of a network that the compiler has kernels for; neither weights nor data are there."""
    command = [*TINY, "--topology=v5e:2x2", "--config.data.root=nowhere"]
    plan = planned(tmp_path, *command)
    costs, parameters = plan["costs"], plan["costs"]["trainable_parameters"]
    assert costs["fits"] and plan["model"].startswith("Mask2Former: Swin of width 32")
    assert (plan["batch_size"], plan["batch_per_device"], plan["image_size"]) == (8, 2, 64)
    assert costs["hbm"]["trainable parameters"] == 4 * parameters
    assert costs["hbm"]["optimizer moments"] == pytest.approx(8 * parameters, abs=100)
    assert costs["donated_bytes"] >= 12 * parameters, "tiles pad what is small"
    assert costs["hbm"]["weights that are not trained"] == 0
    assert {one["kind"] for one in costs["traffic"]} == {"all-reduce"}
    assert {one["group_size"] for one in costs["traffic"]} == {4}
    assert sum(one["elements"] for one in costs["traffic"]) >= parameters
    assert costs["flops"] > plan["image_flops"] * plan["batch_per_device"] > 0
    assert plan["assumptions"] == ["at most 24 classes in an image"]
