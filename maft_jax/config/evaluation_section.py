"""What config.evaluation has: data sets, and how they are evaluated."""

import dataclasses
from dataclasses import dataclass

from input_pipeline.class_lists import BUILT_IN as CLASS_LISTS
from input_pipeline.dataset_specs import SPECS
from maft_jax.config.fields import FROM_HERE, setting

SEGMENT_RULES = ("fcclip", "maft_plus", "mask2former")

EvaluationRoots = dataclasses.make_dataclass(
    "EvaluationRoots",
    [
        *(
            (name, str, setting("", f"folder of {spec.title}", path=FROM_HERE))
            for name, spec in SPECS.items()
        ),
        (
            "folder",
            str,
            setting(
                "",
                "folder of your own, laid out as config.data says of dataset=folder",
                path=FROM_HERE,
            ),
        ),
    ],
    frozen=True,
    namespace={"__module__": __name__},
)
"""Where the data sets to evaluate lie: a setting for each, in the order of papers."""


@dataclass(frozen=True)
class EvaluationConfig:
    records: str = setting(
        "",
        "folder with the records of each data set in a folder of its name; empty = the cache",
        path=FROM_HERE,
    )
    every_steps: int = setting(
        0, "training steps between evaluations; 0 = before the first and after the last", low=0
    )
    max_images: int = setting(0, "images of each data set that are evaluated; 0 = all", low=0)
    frozen: bool = setting(False, "evaluate the CLIP that the checkpoint was tuned from")
    images_per_device: int = setting(1, "images that a device evaluates at once", low=1)
    short_side: int = setting(640, "pixels of the short side that images are resized to", low=8)
    max_long_side: int = setting(2560, "limit of the long side when resizing", low=8)
    task: str = setting(
        "semantic",
        "semantic = mIoU of label maps; panoptic = PQ of segments, instance = AP of objects: both "
        "of data sets that know objects, by --config=configs/eval_only.py alone",
        choices=("semantic", "panoptic", "instance"),
    )
    segment_rules: str = setting(
        "maft_plus",
        "thresholds by which masks become segments and objects, of this system",
        choices=SEGMENT_RULES,
    )
    things: tuple[str, ...] = setting(
        (),
        "classes of roots.folder with objects that can be counted; empty = as its class list says",
    )
    write_segments: bool = setting(
        True,
        "beside PQ or AP, write what was found as COCO's results: a JSON, and PNGs of panoptic "
        "segments (some 10 kB an image, of instances up to 50), which cannot be had later without "
        "evaluating again",
    )
    ensemble_weight: float = setting(
        0.0, "exponent of the generator's own class probabilities; 0 = CLIP alone", low=0, high=1
    )
    ensemble_exponents: tuple[float, ...] = setting(
        (),
        "instead, FC-CLIP's: exponents of the tower's probabilities for classes that the generator "
        "was trained on and for others, such as (0.4,0.8); (1,1) is MAFT+'s; empty = CLIP alone",
        low=0,
        high=1,
    )
    trained_classes: str = setting(
        "",
        "of both ensembles: class list that the generator was trained on (a file, from the working "
        "directory, or a built-in name); a class that shares a name with it is seen; empty = as "
        "the zero-shot split says",
        path=FROM_HERE,
        names=CLASS_LISTS,
    )
    filter_invalid: bool = setting(False, "leave out proposals that are nowhere above 0.5")
    scales: tuple[float, ...] = setting(
        (1.0,), "test-time augmentation: sizes at which CLIP reads, times config.model.image_size"
    )
    flip: bool = setting(False, "test-time augmentation: also read the mirror image")
    num_pictures: int = setting(
        4,
        "images of each data set that training draws as image | labels | frozen | tuned, and "
        "write_segments as true | found; 0 = none",
        low=0,
    )
    roots: EvaluationRoots = dataclasses.field(
        default=EvaluationRoots(),
        metadata={"help": "where the data sets to evaluate lie; those without a folder are not"},
    )

    @property
    def has_data_sets(self) -> bool:
        """Whether there is anything to evaluate."""
        return bool(self.records or any(dataclasses.astuple(self.roots)))
