"""Mask-Adapter on COCO-Stuff 164k: CLIP stays frozen, and a model learns with which maps of its
cells a mask is pooled. For open_clip's ConvNeXt CLIPs.

    python -m maft_jax.main --config=configs/mask_adapter.py --workdir=runs/adapter

with convnext_large_d_320.safetensors and the folder coco in the current folder, as for
configs/coco.py:convnext_large. The authors train in two phases; the second goes on with what the
first has trained, and with other masks:

    python -m maft_jax.main --config=configs/mask_adapter.py:mixed --workdir=runs/adapter_mixed \\
        --config.model.modules=runs/adapter/modules.safetensors

Variants, after a colon:

    configs/mask_adapter.py         masks of the ground truth, 8 images a step, 295,717 steps
    configs/mask_adapter.py:mixed   also, of the records' proposals, up to 8 that overlap a mask of
                                    the ground truth by more than 0.7: their embedding is to be
                                    that of the mask; 24 images a step, 49,286 steps
    configs/mask_adapter.py:tiny    a narrow adapter, small images and a short run on a CPU, with
                                    --config.data.root=my_photos
                                    --config.model.pretrained=random:convnext_tiny-random

The loss is twice the cross-entropy of the masks, and in the second phase five times the distance
of a proposal's embedding and its mask's. AdamW at 1e-4, to a tenth at 88 % and 96 % of the steps,
weight decay 0.05, gradients clipped to a norm of 1, images of 768 pixels, as the authors have it.
They train on the segments of COCO panoptic; here a mask is all of a class in an image.

Evaluation and prediction of the run read masks with the adapter. Hardware: the adapter computes on
every mask by itself, four times as finely as CLIP's cells lie; a GPU. No result has been measured
with this program; docs/methods.md has the published ones.
"""

from maft_jax.config import preset

_VARIANTS = {
    "ground_truth": {
        "batch_size": 8,
        "num_steps": 295_717,
        "optimizer.learning_rate_drops": (260_231, 283_888),
    },
    "mixed": {
        "batch_size": 24,
        "num_steps": 49_286,
        "loss.adapter_masks": "mixed",
        "proposals.generator": "superpixels",
        "proposals.num_proposals": 100,
        "optimizer.learning_rate_drops": (43_371, 47_314),
    },
    "tiny": {
        "batch_size": 8,
        "num_steps": 60,
        "log_every_steps": 5,
        "model.pretrained": "random:convnext_tiny-random",
        "model.image_size": 128,
        "data.dataset": "folder",
        "data.root": "",
        "data.crop_size": 128,
        "data.short_sides": (128, 160),
        "loss.adapter_width": 32,
        "optimizer.learning_rate_drops": (52, 57),
        "checkpointing.every_steps": 20,
    },
}


def get_config(variant: str = "ground_truth"):
    """`ground_truth`, `mixed`, or `tiny`."""
    if variant not in _VARIANTS:
        expected = ", ".join(_VARIANTS)
        raise ValueError(f"configs/mask_adapter.py:{variant}: expected one of {expected}")
    config = preset("official")
    config.update_from_flattened_dict(
        {
            "method": "mask_adapter",
            "model.pretrained": "convnext_large_d_320.safetensors",
            "model.image_size": 768,
            "model.mask_start_layer": -1,
            "data.dataset": "coco_stuff",
            "data.root": "coco",
            "data.crop_size": 768,
            "proposals.generator": "ground_truth",
            "proposals.num_proposals": 32,
            "optimizer.learning_rate": 1e-4,
            "optimizer.schedule": "drops",
            "optimizer.weight_decay": 0.05,
            "optimizer.clip_norm": 1.0,
            **_VARIANTS[variant],
        }
    )
    return config
