"""Evaluates weights on several data sets, one after another, and prints one table.

    python -m maft_jax.main --config=configs/eval_only.py --workdir=runs/eval \\
        --config.checkpoint=runs/first \\
        --config.evaluation.roots.voc2012=VOC2012 --config.evaluation.roots.folder=my_photos

config.checkpoint is the workdir of a run (its newest checkpoint) or a file of weights; without it,
config.model.pretrained is evaluated as it is. The same command with --config.evaluation.frozen=True
evaluates the CLIP that the checkpoint was tuned from, and the table then shows frozen, tuned and
gain. Data sets: ade20k_full, pascal_context_459, ade20k_150, pascal_context_59, voc2012,
coco_stuff, coco_panoptic, ade20k_panoptic, cityscapes, shapes_world and folder (config.data says
how it is laid out), in this order whatever the command's. Where labels know objects
(coco_panoptic, ade20k_panoptic, cityscapes, COCO's JSON in a folder), PQ or AP instead of mIoU is
--config.evaluation.task=panoptic or instance (docs/panoptic.md).

Start layer and image size come from the weights where they say it, else they are 8 and 480;
prompts and logit scale from the run. Everything else is the official protocol: short side 640,
100 proposals, CLIP's scores alone.

Hardware: anything. Results, one file per data set, and what an interrupted evaluation has counted
are in WORKDIR/evaluation; the same command goes on. docs/evaluation.md has the rest.

Expected result with the official weights and proposals (published, mIoU gt_or_pred): MAFT ViT-B/16
10.25 on ADE-847, 12.85 on PC-459, 29.14 on ADE-150, 53.33 on PC-59, 90.44 on VOC-20; ViT-L/14
12.12, 15.68, 32.05, 58.01, 92.14; frozen CLIP, as FreeSeg reports, 7.1, 6.4, 17.9, 34.4, 85.6. The
superpixel proposals that are the default here are coarser; no such result is measured with them.
"""

from maft_jax.config import preset


def get_config():
    """The official protocol; weights and data sets come from the command line."""
    config = preset("official")
    config.update_from_flattened_dict(
        {"task": "evaluate", "model.mask_start_layer": -1, "model.image_size": 0}
    )
    return config
