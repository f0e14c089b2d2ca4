"""Mask-aware fine-tuning of CLIP (MAFT) in JAX.

clip = maft_jax.load("ViT-B-16.pt")
text = clip.encode_text(["cat", "wall-other"])
features = clip.encode_proposals(images, masks)
segmentation = maft_jax.segment(clip, "photo.jpg", "cat, sofa, lamp")
objects = maft_jax.segment_panoptic(clip, "photo.jpg", "cat, sofa, wall", things=["cat", "sofa"])
"""

import itertools
import sys
from typing import TYPE_CHECKING

from maft_jax.runtime import stop_requests
from maft_jax.runtime.absent_keras import leave_keras_out
from maft_jax.runtime.absent_tpu import stop_the_search_for_tpus

__version__ = "0.1.0"

__all__ = ["Clip", "load", "segment", "segment_instances", "segment_panoptic"]

stop_the_search_for_tpus()
if sys.argv[0].rpartition("/")[2] == "maft-jax" or any(
    flag == "-m" and name.startswith("maft_jax.")
    for flag, name in itertools.pairwise(sys.orig_argv)
):
    stop_requests.watch()  # of a command nothing comes earlier than this
    leave_keras_out()

if TYPE_CHECKING:  # for editors, and for the site's reference
    from maft_jax.inference.clip import Clip, load
    from maft_jax.inference.object_segmentation import segment_instances, segment_panoptic
    from maft_jax.inference.segmentation import segment
else:

    def __getattr__(name: str):
        """Loads JAX only when needed: not for --help, nor in processes that make proposals."""
        if name in __all__:
            from maft_jax.inference import clip, object_segmentation, segmentation

            for module in (clip, object_segmentation, segmentation):
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module 'maft_jax' has no attribute {name!r}")
