"""Proposals read off the label map: for debugging, and as an upper bound."""

import numpy as np
from jaxtyping import Int32, UInt8
from skimage.measure import label as connected_components

from input_pipeline.examples import IGNORE
from maft_jax.proposals.soft_masks import soften_masks


def ground_truth_proposals(
    label_map: Int32[np.ndarray, "h w"], num_proposals: int
) -> UInt8[np.ndarray, "n grid_h grid_w"]:
    """One soft mask per class present, then the connected components of classes in pieces.

    Both groups are ordered largest first. There are none where no pixel is labelled.
    """
    classes, pixels = np.unique(label_map[label_map != IGNORE], return_counts=True)
    class_order = np.argsort(-pixels, kind="stable")
    # Components are numbered from 1; 0 is what is not labelled.
    components = connected_components(label_map, background=IGNORE, connectivity=2)
    areas = np.bincount(components.ravel())
    class_of = np.full(len(areas), IGNORE)
    class_of[components] = label_map
    class_area = dict(zip(classes.tolist(), pixels.tolist(), strict=True))
    pieces = [
        component
        for component in np.argsort(-areas, kind="stable")
        if component and areas[component] < class_area[int(class_of[component])]
    ]
    masks = [label_map == classes[i] for i in class_order] + [components == c for c in pieces]
    return soften_masks(
        np.array(masks[:num_proposals], bool).reshape(-1, *label_map.shape), label_map.shape
    )
