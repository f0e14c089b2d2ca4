"""Trains a tiny generator on the seen classes of shapes world: object or none.

    python -m maft_jax.main --config=configs/generator_shapes_world.py --workdir=runs/generator \\
        --config.data.root=runs/demo/data --config.evaluation.roots.shapes_world=runs/demo/data

with the pictures that python -m maft_jax.cli.demo --workdir=runs/demo draws. Afterwards
runs/generator/generator makes proposals: --config.proposals.generator=mask2former
--config.proposals.path=runs/generator/generator. docs/generator_training.md has what comes out.

Hardware: anything.
"""

from maft_jax.config import preset


def get_config():
    """A generator of a million parameters, which reads 128 x 128 pixels."""
    config = preset("official")
    config.update_from_flattened_dict(
        {
            "task": "train_generator",
            "batch_size": 16,
            "num_steps": 600,
            "data.dataset": "shapes_world",
            "data.unseen_classes": ("published",),
            "data.crop_size": 128,
            "data.short_sides": (128,),
            "data.max_long_side": 128,
            "proposals.generator": "ground_truth",
            "generator.backbone": "swin_nano",
            "generator.classes": "agnostic",
            "generator.num_points": 512,
            "generator.queries": 32,
            "generator.width": 64,
            "generator.encoder_layers": 1,
            "generator.decoder_layers": 3,
            "optimizer.learning_rate": 1e-3,
            "optimizer.weight_decay": 0.01,
            "optimizer.no_weight_decay": (r"norm[^/]*/(scale|bias)$", r"^decoder/query", "embed$"),
            "evaluation.short_side": 128,
            "evaluation.max_long_side": 128,
        }
    )
    return config
