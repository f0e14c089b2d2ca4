"""The official MAFT recipe on COCO-Stuff 164k, and its variants.

    python -m maft_jax.main --config=configs/coco.py --workdir=runs/coco

with ViT-B-16.pt and the folder coco in the current folder (elsewhere: --config.data.root,
--config.model.pretrained). coco holds train2017 and stuffthingmaps/train2017, or the official
train2017.zip and stuffthingmaps_trainval2017.zip, which are read in place. Make the proposals
first, with as many machines as you like: python -m maft_jax.cli.precompute_proposals with the same
--config and --config.data.records=FOLDER. Variants, after a colon:

    configs/coco.py             ViT-B/16, the released code's values
    configs/coco.py:paper       ViT-B/16, the paper's distillation weight and weight decay
    configs/coco.py:l14         ViT-L/14 (ViT-L-14.pt), the released code's values
    configs/coco.py:l14,paper   both
    configs/coco.py:convnext_large
                                open_clip's ConvNeXt-L (convnext_large_d_320.safetensors), see below
    configs/coco.py:siglip2_b16 SigLIP 2 B/16 (the folder siglip2-base-patch16-512, which has its
                                tokenizer), at its 512 pixels; docs/towers.md has the rest
    configs/coco.py:eva02_l14   EVA-02 L/14 at 336 pixels (the hub's folder timm/
                                eva02_large_patch14_clip_336.merged2b_s6b_b61k, as open_clip reads
                                it), masks in the last third of its 24 layers
    configs/coco.py:tipsv2_b14  TIPSv2 B/14 at 448 pixels (the hub's folder google/tipsv2-b14)
    configs/coco.py:zero_shot   trained without the 15 unseen classes of the zero-shot split

Hardware: the official run took 6 min 4 s (0.365 s a step, 1000 steps, batch 16) on 8 A100-80GB
with its proposal generator inside the step. This framework has not been timed on an accelerator
yet. Memory: compiled for TPU v5e, 32 images per 16 GiB chip fit for ViT-B/16
(python -m maft_jax.cli.plan says what fits where); --config.model.remat=True or
--config.optimizer.accumulation_steps=4 need less.

convnext_large: MAFT's losses and schedule; stem and stages are tuned, at 1e-5 with weight decay
2e-5, as MAFT+ tunes the same tower. The file is open_clip_model.safetensors of the released
CLIP-convnext_large_d_320, by a name that says what it is; open_clip_config.json may lie beside it.
Crops of 640 are read at 640 pixels, a grid of 20x20 cells: at 480 it would be 15x15, and a region
smaller than a cell would be seen with its neighbours. Evaluate with
--config.model.image_aspect=keep, as FC-CLIP and MAFT+ are. No result has been measured with it;
docs/towers.md has the published ones of related systems.

Expected result with the official proposals (published, mIoU): MAFT ViT-B/16 10.25 on ADE-847,
12.85 on PC-459, 29.14 on ADE-150, 53.33 on PC-59, 90.44 on VOC-20; ViT-L/14 12.12, 15.68, 32.05,
58.01, 92.14. The superpixel proposals used here are class-agnostic and coarser; no such result
has been measured with them. The official log shows a weighted total loss of .0177 at step 20,
.0125 at 100, .0106 at 500 and .0104 at 1000.
"""

from maft_jax.config import preset

_TOWERS = {
    "b16": {"model.pretrained": "ViT-B-16.pt"},
    "l14": {"model.pretrained": "ViT-L-14.pt"},
    "convnext_large": {
        "model.pretrained": "convnext_large_d_320.safetensors",
        "model.image_size": 640,
        "model.mask_start_layer": 0,
        "optimizer.weight_decay": 2e-5,
    },
    "siglip2_b16": {
        "model.pretrained": "siglip2-base-patch16-512",
        "model.image_size": 0,
        "model.mask_start_layer": -1,
    },
    "eva02_l14": {
        "model.pretrained": "eva02_large_patch14_clip_336.merged2b_s6b_b61k",
        "model.image_size": 0,
        "model.mask_start_layer": -1,
    },
    "tipsv2_b14": {
        "model.pretrained": "tipsv2-b14",
        "model.image_size": 0,
        "model.mask_start_layer": -1,
    },
}
"""What is set for each image tower."""
_VARIANTS = ("official", "paper", *_TOWERS, "zero_shot")


def get_config(variant: str = "official"):
    """`variant` is a comma-separated choice of official or paper, an image tower, zero_shot."""
    chosen = variant.split(",")
    if unknown := sorted(set(chosen) - set(_VARIANTS)):
        raise ValueError(f"configs/coco.py:{variant}: unknown {unknown}; known: {_VARIANTS}")
    towers = [name for name in chosen if name in _TOWERS] or ["b16"]
    if len(towers) > 1:
        raise ValueError(f"configs/coco.py:{variant}: one image tower at a time, got {towers}")
    config = preset("paper" if "paper" in chosen else "official")
    config.update_from_flattened_dict(
        {
            "batch_size": 16,
            "num_steps": 1000,
            "model.image_size": 480,
            "model.mask_start_layer": 8,
            "data.dataset": "coco_stuff",
            "data.root": "coco",
            "data.unseen_classes": ("published",) if "zero_shot" in chosen else (),
            "proposals.num_proposals": 100,
            "data.crop_size": 640,
            **_TOWERS[towers[0]],
        }
    )
    return config
