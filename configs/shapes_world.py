"""Fine-tunes the tiny CLIP of shapes world on its seen classes, and evaluates on all of them.

    python -m maft_jax.main --config=configs/shapes_world.py --workdir=runs/shapes \\
        --config.data.root=runs/demo/data --config.evaluation.roots.shapes_world=runs/demo/data

Its masks are drawn from the labels, better and worse ones. configs/shapes_world.py:learned has
those of a generator that comes with the package, in training and evaluation
(configs/generator_shapes_world.py trained it, without labels of the unseen classes);
python -m maft_jax.cli.demo draws the pictures and does that in one command. What comes out, and how
it depends on these settings, is in docs/shapes_world.md.

Hardware: anything; two or three minutes on two CPU cores.
"""

from maft_jax.config import preset


def get_config(variant: str = "drawn"):
    """What differs from the official recipe in a world of 128 x 128 pixels.

    `variant` is drawn, or learned: which masks are the proposals.
    """
    if variant not in ("drawn", "learned"):
        raise ValueError(f"configs/shapes_world.py:{variant}: expected one of drawn, learned")
    config = preset("official")
    config.update_from_flattened_dict(
        {
            "num_steps": 50,
            "log_every_steps": 5,
            "model.pretrained": "built-in:shapes_world",
            "model.mask_start_layer": 2,
            "model.image_size": 128,
            "data.dataset": "shapes_world",
            "data.unseen_classes": ("published",),
            "data.crop_size": 128,
            "data.short_sides": (128,),
            "data.max_long_side": 128,
            "data.augment": False,
            "proposals.generator": "ground_truth",
            "proposals.kinds": ("regions", "jittered", "unions", "parts", "random"),
            "proposals.num_proposals": 24,
            "optimizer.learning_rate": 1e-4,
            "evaluation.short_side": 128,
            "evaluation.max_long_side": 128,
            "evaluation.images_per_device": 10,
        }
    )
    if variant == "learned":
        config.proposals.generator = "mask2former"
        config.proposals.path = "built-in:shapes_world"
    return config
