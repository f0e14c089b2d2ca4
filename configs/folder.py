"""Fine-tunes on any folder of photos with label maps.

    my_photos/images/*.jpg        my_photos/annotations/*.png        my_photos/classes.txt

    python -m maft_jax.main --config=configs/folder.py --workdir=runs/folder \\
        --config.data.root=my_photos --config.model.pretrained=ViT-B-16.pt

Hardware: anything; on a CPU try --config=configs/folder.py:tiny with
--config.model.pretrained=random:tiny first, which takes a minute or two for its 60 steps.
Proposals are superpixel regions, computed once and cached as records.

classes.txt has one name a line (line number - 1 is the label), or "label<TAB>name" lines, or is a
list of another tool: docs/class_lists.md. Masks of 0 and 255 need "label<TAB>name" lines.
Other layouts: --config.data.images=JPEGImages --config.data.annotations=SegmentationClass. Label
maps of colours, masks one file per class, JSONs of COCO and Label Studio: docs/label_maps.md.
"""

from maft_jax.config import preset


def get_config(variant: str = "default"):
    """`default`, or `tiny` for small images and a short run on a CPU."""
    config = preset("official")
    if variant == "tiny":
        config.update_from_flattened_dict(
            {
                "batch_size": 8,
                "num_steps": 60,
                "log_every_steps": 5,
                "model.mask_start_layer": 2,
                "model.image_size": 160,
                "data.crop_size": 192,
                "data.short_sides": (192, 224, 256),
                "proposals.num_proposals": 32,
                "optimizer.learning_rate": 1e-3,
                "checkpointing.every_steps": 20,
            }
        )
    elif variant != "default":
        raise ValueError(f"configs/folder.py:{variant}: expected one of default, tiny")
    return config
