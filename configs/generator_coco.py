"""Trains a generator of proposals on COCO-Stuff 164k: Mask2Former or FreeSeg, from labels.

    python -m maft_jax.main --config=configs/generator_coco.py --workdir=runs/generator \\
        --config.generator.backbone_weights=resnet50.pth

with the folder coco in the current folder, as configs/coco.py has it. resnet50.pth are ImageNet's
weights by torchvision or detectron2 (as tensors, not its .pkl), and the backbone learns at a tenth
of the rate. From nothing at all, which needs far more steps, train with
--config.optimizer.pretrained_rate=1 instead of them. Records are made first, of the labels alone:
they hold the images that training reads. Variants, after a colon:

    configs/generator_coco.py           Mask2Former, ResNet-50, classes of its own, points
    configs/generator_coco.py:agnostic  the same, told object from none, without the 15 unseen
                                        classes of the zero-shot split
    configs/generator_coco.py:freeseg   FreeSeg's, ResNet-101c, class names as text (ViT-B-16.pt),
                                        dense criterion, without the 15 unseen classes

The trained generator is in WORKDIR/generator, for transformers, too (FreeSeg: as its authors'
checkpoints). Use it at once:

    --config.proposals.generator=mask2former --config.proposals.path=runs/generator/generator

What is measured on the way, and what differs from the official code, is in
docs/generator_training.md.

Hardware: not timed on an accelerator yet. The official FreeSeg trained 60,000 steps of 32 images,
Mask2Former 368,750 of 16. No result has been measured with these recipes.
"""

from maft_jax.config import preset

_NO_WEIGHT_DECAY = (
    r"norm[^/]*/(scale|bias)$",
    r"^decoder/(query_feat|query_embed|level_embed)$",
    r"bias_table$",
)
"""Norms and embeddings, but for the pixel decoder's level embedding, as in the official code."""

_MASK2FORMER = {
    "batch_size": 16,
    "num_steps": 368_750,
    "data.crop_size": 1024,
    "data.short_sides": tuple(range(128, 2049, 128)),
    "data.max_long_side": 4096,
    "optimizer.learning_rate": 1e-4,
    "optimizer.schedule": "drops",
    "optimizer.learning_rate_drops": (327_778, 355_092),
    "optimizer.weight_decay": 0.05,
    "evaluation.short_side": 800,
    "evaluation.max_long_side": 1333,
}
_FREESEG = {
    "batch_size": 32,
    "num_steps": 60_000,
    "model.pretrained": "ViT-B-16.pt",
    "data.unseen_classes": ("published",),
    "data.crop_size": 640,
    "generator.backbone": "resnet101c",
    "generator.classes": "text",
    "generator.criterion": "dense",
    "generator.decoder_layers": 10,
    "optimizer.learning_rate": 1.5e-4,
    "optimizer.weight_decay": 1.5e-4,
}
_VARIANTS = {
    "mask2former": _MASK2FORMER,
    "agnostic": _MASK2FORMER
    | {"generator.classes": "agnostic", "data.unseen_classes": ("published",)},
    "freeseg": _FREESEG,
}


def get_config(variant: str = "mask2former"):
    """`variant` is mask2former, agnostic or freeseg."""
    if variant not in _VARIANTS:
        known = list(_VARIANTS)
        raise ValueError(f"configs/generator_coco.py:{variant}: unknown variant; known: {known}")
    config = preset("official")
    config.update_from_flattened_dict(
        {
            "task": "train_generator",
            "data.dataset": "coco_stuff",
            "data.root": "coco",
            "proposals.generator": "ground_truth",
            "optimizer.pretrained_rate": 0.1,
            "optimizer.no_weight_decay": _NO_WEIGHT_DECAY,
            "checkpointing.every_steps": 5000,
            **_VARIANTS[variant],
        }
    )
    return config
