"""MaskCLIP++ on any folder of photos with label maps: masks of the ground truth, no generator.

    my_photos/images/*.jpg        my_photos/annotations/*.png        my_photos/classes.txt

    python -m maft_jax.main --config=configs/maskclippp.py --workdir=runs/maskclippp \\
        --config.data.root=my_photos --config.model.pretrained=ViT-B-16.pt

Classes and layouts are as for configs/folder.py. Variants, after a colon:

    configs/maskclippp.py           towers with a class token, such as CLIP's ViT: proposals read
                                    patches as MAFT's do; the linear alignment
    configs/maskclippp.py:eva02     EVA-02, masked as the authors mask it (mask_rule=maskclippp)
    configs/maskclippp.py:convnext  open_clip's ConvNeXt: soft pooling, the pseudo-text alignment,
                                    the whole tower is tuned, its head too
    configs/maskclippp.py:tiny      small images and a short run on a CPU, with
                                    --config.model.pretrained=random:tiny

Every class that an image shows is read through its own mask, and classified: the loss is the
cross-entropy, in which every image, and in it every class, counts alike. Nothing is proposed: the
records' masks are those of the label maps (proposals.generator=ground_truth), which evaluation on
the way reads, and training does not.

The authors train on COCO-Stuff or COCO panoptic for 20,000 steps of 4 images (crops of 1024 for
ConvNeXt, 448 for EVA-02). Rates, their fall as a cosine, decay and clipping are theirs of EVA-02
and ConvNeXt-B. Hardware: anything; there is no teacher. No result has been measured with it;
docs/methods.md has the published ones.
"""

from maft_jax.config import preset

_VARIANTS = {
    "vit": {},
    "eva02": {"model.mask_rule": "maskclippp"},
    "convnext": {
        "model.image_size": 640,
        "model.mask_pooling": "soft",
        "loss.alignment": "pseudo_text",
        "optimizer.trainable": (".",),
        "optimizer.pretrained_rate": 1e-3,
    },
    "tiny": {
        "batch_size": 8,
        "num_steps": 60,
        "log_every_steps": 5,
        "model.image_size": 160,
        "data.crop_size": 192,
        "data.short_sides": (192, 224, 256),
        "checkpointing.every_steps": 20,
    },
}


def get_config(variant: str = "vit"):
    """`vit`, `eva02`, `convnext`, or `tiny`."""
    if variant not in _VARIANTS:
        raise ValueError(f"configs/maskclippp.py:{variant}: expected one of {', '.join(_VARIANTS)}")
    config = preset("official")
    config.update_from_flattened_dict(
        {
            "method": "maskclippp",
            "batch_size": 4,
            "num_steps": 20_000,
            "model.mask_start_layer": -1,
            "model.image_size": 0,
            "proposals.generator": "ground_truth",
            "proposals.num_proposals": 32,
            "optimizer.learning_rate": 2e-4,
            "optimizer.schedule": "cosine",
            "optimizer.final_learning_rate": 1e-5,
            "optimizer.pretrained_rate": 1e-2,
            "optimizer.weight_decay": 0.05,
            **_VARIANTS[variant],
        }
    )
    return config
