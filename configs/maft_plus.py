"""MAFT+ on COCO-Stuff 164k, for open_clip's ConvNeXt CLIPs.

    python -m maft_jax.main --config=configs/maft_plus.py --workdir=runs/maft_plus

with convnext_large_d_320.safetensors and the folder coco in the current folder, as for
configs/coco.py:convnext_large, whose losses these replace: probabilities of proposals follow their
IoU, as in MAFT, and instead of a distillation of whole images the sums of the last map over rows
and columns stay what they were (weight 0.1). Class rows look at the image before proposals are
compared with them, by a module that is trained, too, the content-dependent transfer; evaluation
and prediction of the run use it. Variants, after a colon:

    configs/maft_plus.py        ConvNeXt-L, 55,000 steps
    configs/maft_plus.py:base   ConvNeXt-B (convnext_base_w_320.safetensors), 60,000 steps
    configs/maft_plus.py:tiny   small images and a short run on a CPU, with
                                --config.data.root=my_photos
                                --config.model.pretrained=random:convnext_tiny-random

The transfer learns at 1e-4, stem and stages at 1e-5, with weight decay 2e-5, gradients clipped to a
norm of 0.01, 8 images a step, as the authors have it; norms are not decayed. Theirs trains a
generator at the same time, with images of 800 pixels that are not cropped; here proposals are those
of the records, crops 640.

    --config.loss.transfer=panoptic     the transfer of their panoptic models, which begins as the
                                        identity, where that of semantic ones begins at random
    --config.loss.transfer=none --config.optimizer.pretrained_rate=1 \\
        --config.optimizer.learning_rate=1e-5               the losses alone

Hardware: the authors' run took 14 hours on 8 A100. No result has been measured with this program;
docs/methods.md has the published ones of the whole system.
"""

from maft_jax.config import preset

_VARIANTS = {
    "large": {"model.pretrained": "convnext_large_d_320.safetensors", "num_steps": 55_000},
    "base": {"model.pretrained": "convnext_base_w_320.safetensors", "num_steps": 60_000},
    "tiny": {
        "num_steps": 60,
        "log_every_steps": 5,
        "model.pretrained": "random:convnext_tiny-random",
        "model.image_size": 128,
        "data.dataset": "folder",
        "data.root": "",
        "data.crop_size": 128,
        "data.short_sides": (128, 160),
        "proposals.num_proposals": 32,
        "checkpointing.every_steps": 20,
    },
}


def get_config(variant: str = "large"):
    """`large`, `base`, or `tiny`."""
    if variant not in _VARIANTS:
        raise ValueError(f"configs/maft_plus.py:{variant}: expected one of {', '.join(_VARIANTS)}")
    config = preset("official")
    config.update_from_flattened_dict(
        {
            "method": "maft_plus",
            "batch_size": 8,
            "model.image_size": 640,
            "model.mask_start_layer": -1,
            "data.dataset": "coco_stuff",
            "data.root": "coco",
            "data.crop_size": 640,
            "proposals.num_proposals": 100,
            "optimizer.learning_rate": 1e-4,
            "optimizer.pretrained_rate": 0.1,
            "optimizer.weight_decay": 2e-5,
            **_VARIANTS[variant],
        }
    )
    return config
