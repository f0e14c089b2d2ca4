"""The data sets, each declared once, in the order of papers; all else about them follows.

Choices and evaluation roots of the configuration, layouts, tables and TFDS builders are made of
this list. It reads no data and loads nothing heavy, so that a configuration may import it.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from input_pipeline.class_lists import ClassList, load_class_list
from input_pipeline.shapes_world.vocabulary import CLASS_NAMES, OBJECTS, unseen_classes


@dataclass(frozen=True)
class Download:
    """An official archive with a stable address, to be put into the data root as it is."""

    url: str
    num_bytes: int

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        size = self.num_bytes / 1e6
        return f"{self.url} ({f'{size:.0f} MB' if size < 1000 else f'{size / 1000:.1f} GB'})"


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set before any of its files is read.

    `title` is its full name, `short_title` that of papers' tables. `layout` names the function
    that opens it, of a FileTree and a split, as "module:function" below input_pipeline.layouts.
    `ignore_labels` are the values of unlabelled pixels in the official label files.
    `num_images` lists, for each split, every count that circulates, the usual one first.
    `unseen_ids` are the class ids that the published zero-shot split leaves out of training.
    `stuff_ids` are the class ids without countable things; None where its authors do not say.
    `downloads` are keyed by what they hold, in the words of the layout that reads them;
    `obtaining` tells where the parts without a stable address come from.
    What has a `citation` has a builder for TensorFlow Datasets, which shows it with `description`
    and `homepage`. Sets that are labels of the same images are configurations of one builder:
    `config` is what follows the builder's name in theirs.
    """

    name: str
    title: str
    short_title: str
    layout: str
    class_list: str
    ignore_labels: tuple[int, ...]
    num_images: Mapping[str, tuple[int, ...]]
    unseen_ids: tuple[int, ...] = ()
    stuff_ids: tuple[int, ...] | None = None
    downloads: Mapping[str, Download] = field(default_factory=dict)
    obtaining: str = ""
    description: str = ""
    homepage: str = ""
    citation: str = ""
    config: str = ""

    @property
    def classes(self) -> ClassList:
        """Names in contiguous order and their values in the official label files."""
        return load_class_list(self.class_list, self.ignore_labels)

    @property
    def splits(self) -> tuple[str, ...]:
        """Parts of which each can be opened."""
        return tuple(self.num_images)

    @property
    def opener(self) -> Callable:
        """`layout` itself, a function of a FileTree and a split that returns a LayoutSource."""
        module, _, function = self.layout.partition(":")
        found = getattr(importlib.import_module(f"input_pipeline.layouts.{module}"), function, None)
        if found is None:
            raise ValueError(
                f"{self.name}: expected layout to be module:function below input_pipeline.layouts, "
                f"got {self.layout!r}"
            )
        return found

    @property
    def num_classes(self) -> int:
        return len(self.classes.names)

    @property
    def thing_ids(self) -> tuple[int, ...] | None:
        """Class ids with countable objects; None where `stuff_ids` is."""
        if self.stuff_ids is None:
            return None
        return tuple(sorted(set(range(self.num_classes)) - set(self.stuff_ids)))

    @property
    def unseen_classes(self) -> tuple[str, ...]:
        """Names of the unseen classes; empty when no split was published."""
        names = self.classes.names
        return tuple(names[class_id] for class_id in self.unseen_ids)


_COCO_UNSEEN = (19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160)
_VOC_UNSEEN = (15, 16, 17, 18, 19)
_ADE_150_UNSEEN = (9, 15, 30, 37, 49, 60, 74, 81, 89, 99, 112, 128, 136, 143, 149)
# The panoptic version of the data set counts the other hundred.
_ADE_150_STUFF = """
0 1 2 3 4 5 6 9 11 13 16 17 21 25 26 28 29 34 40 46 48 51 52 54 59 60 61 63 68 77 79 84 91 94 96 99
100 101 105 106 109 113 114 117 122 128 131 140 141 145
"""
_ADE_150_STUFF_IDS = tuple(map(int, _ADE_150_STUFF.split()))
# The classes that ADE20K-Full's frequency table calls rare; ids, as there are 275 of them.
_ADE_FULL_RARE = """
166 176 193 208 264 267 273 287 298 303 311 317 328 329 330 340 342 344 347 349 356 358
376 380 383 394 400 401 402 404 411 415 417 420 421 430 431 443 445 446 453 454 458 459
463 468 471 472 474 477 482 485 494 505 507 511 512 521 522 523 525 527 528 529 530 533
535 536 541 544 546 547 548 549 550 551 557 559 560 561 562 563 565 566 567 575 576 577
579 580 581 582 584 585 586 587 588 589 591 592 595 598 599 601 604 605 606 608 609 611
612 613 615 617 618 620 622 623 624 627 629 630 631 632 633 636 639 641 643 651 652 653
655 656 657 661 663 664 665 666 667 668 670 671 673 674 675 676 679 681 682 684 685 687
690 691 693 694 695 698 702 703 704 707 708 709 710 711 712 714 717 718 719 722 724 725
726 727 728 730 732 733 734 735 736 739 740 741 742 747 748 751 752 753 754 755 757 758
759 761 762 763 764 766 767 768 769 770 771 772 774 776 777 778 779 781 782 783 785 786
787 788 790 791 792 793 794 796 798 799 800 801 802 804 805 806 807 808 809 810 811 812
813 815 816 817 818 819 820 821 822 823 824 825 826 827 828 829 830 831 832 833 834 835
836 837 838 839 840 841 842 843 844 845 846
"""
_ADE_FULL_UNSEEN = tuple(map(int, _ADE_FULL_RARE.split()))

_COCO_IMAGES = "http://images.cocodataset.org/zips"
_COCO_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_ADE_PAGE = "https://groups.csail.mit.edu/vision/datasets/ADE20K/"
_ADE_CITATION = """@article{zhou2019semantic,
  title = {Semantic Understanding of Scenes through the {ADE20K} Dataset},
  author = {Zhou, Bolei and Zhao, Hang and Puig, Xavier and Xiao, Tete and Fidler, Sanja and
            Barriuso, Adela and Torralba, Antonio},
  journal = {International Journal of Computer Vision},
  volume = {127},
  year = {2019}
}"""
_PASCAL_CONTEXT_DESCRIPTION = (
    "The photos of Pascal VOC 2010 with every pixel labelled, stuff included; classes outside the "
    "chosen vocabulary are unlabelled."
)
_PASCAL_CONTEXT_PAGE = "https://cs.stanford.edu/~roozbeh/pascal-context/"
_PASCAL_CONTEXT_CITATION = """@inproceedings{mottaghi2014role,
  title = {The Role of Context for Object Detection and Semantic Segmentation in the Wild},
  author = {Mottaghi, Roozbeh and Chen, Xianjie and Liu, Xiaobai and Cho, Nam-Gyu and Lee,
            Seong-Whan and Fidler, Sanja and Urtasun, Raquel and Yuille, Alan},
  booktitle = {CVPR},
  year = {2014}
}"""
_PASCAL_CONTEXT_DOWNLOADS = {
    "images": Download(f"{_VOC}/voc2010/VOCtrainval_03-May-2010.tar", 1_393_000_000),
    "labels": Download(
        "https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz", 32_000_000
    ),
}
_PASCAL_CONTEXT_IMAGES = {"train": (4998, 4996), "val": (5105, 5104)}

_ALL = (
    DatasetSpec(
        name="ade20k_full",
        title="ADE20K-Full (847 classes, release 2021_17_01)",
        short_title="A-847",
        layout="ade20k_full:open_ade20k_full",
        class_list="ade20k_847",
        ignore_labels=(65535,),
        num_images={"train": (25_574,), "val": (2_000,)},
        unseen_ids=_ADE_FULL_UNSEEN,
        obtaining=(
            "ADE20K_2021_17_01 needs a registration: request it at "
            f"{_ADE_PAGE} and download ADE20K_2021_17_01.zip"
        ),
        description=(
            "Scenes of ADE20K (release 2021_17_01) with the 847 classes that open-vocabulary "
            "models are evaluated on, as 16-bit ids 0 to 846; rarer objects are unlabelled."
        ),
        homepage=_ADE_PAGE,
        citation=_ADE_CITATION,
    ),
    DatasetSpec(
        name="pascal_context_459",
        title="Pascal Context, 459 classes",
        short_title="PC-459",
        layout="pascal_context:open_pascal_context_459",
        class_list="pascal_context_459",
        ignore_labels=(65535,),
        num_images=_PASCAL_CONTEXT_IMAGES,
        downloads=_PASCAL_CONTEXT_DOWNLOADS,
        description=_PASCAL_CONTEXT_DESCRIPTION,
        homepage=_PASCAL_CONTEXT_PAGE,
        citation=_PASCAL_CONTEXT_CITATION,
        config="459",
    ),
    DatasetSpec(
        name="ade20k_150",
        title="ADE20K-150 (SceneParsing)",
        short_title="A-150",
        layout="ade20k:open_ade20k_150",
        class_list="ade20k_150",
        ignore_labels=(0,),
        num_images={"train": (20_210,), "val": (2_000,)},
        unseen_ids=_ADE_150_UNSEEN,
        stuff_ids=_ADE_150_STUFF_IDS,
        downloads={
            "images and label maps": Download(
                "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                967_382_037,
            )
        },
        description=(
            "Scenes of ADE20K with the 150 classes of the MIT scene parsing challenge, as ids 0 to "
            "149; everything else is unlabelled."
        ),
        homepage=_ADE_PAGE,
        citation=_ADE_CITATION,
    ),
    DatasetSpec(
        name="pascal_context_59",
        title="Pascal Context, 59 classes",
        short_title="PC-59",
        layout="pascal_context:open_pascal_context_59",
        class_list="pascal_context_59",
        ignore_labels=(255,),
        num_images=_PASCAL_CONTEXT_IMAGES,
        downloads=_PASCAL_CONTEXT_DOWNLOADS,
        description=_PASCAL_CONTEXT_DESCRIPTION,
        homepage=_PASCAL_CONTEXT_PAGE,
        citation=_PASCAL_CONTEXT_CITATION,
        config="59",
    ),
    DatasetSpec(
        name="voc2012",
        title="Pascal VOC 2012",
        short_title="VOC-20 (PAS-20)",
        layout="voc2012:open_voc2012",
        class_list="voc_20",
        ignore_labels=(0, 255),
        num_images={"train": (10_582, 1_464), "val": (1_449,)},
        unseen_ids=_VOC_UNSEEN,
        stuff_ids=(),
        downloads={
            "images and label maps": Download(
                f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", 1_999_639_040
            )
        },
        obtaining=(
            "The 10,582 training images of the literature need SegmentationClassAug (label maps "
            "made of the SBD data set) beside SegmentationClass; it has no stable address. "
            "Without it the 1,464 images of train.txt are used"
        ),
        description=(
            "The segmentation images of Pascal VOC 2012 with its 20 classes as ids 0 to 19. "
            "Background and the borders of objects are unlabelled. Trains on SegmentationClassAug "
            "where it is present."
        ),
        homepage=f"{_VOC}/voc2012/",
        citation="""@article{everingham2015pascal,
  title = {The {Pascal} Visual Object Classes Challenge: A Retrospective},
  author = {Everingham, Mark and Eslami, S. M. Ali and Van Gool, Luc and Williams, Christopher K. I.
            and Winn, John and Zisserman, Andrew},
  journal = {International Journal of Computer Vision},
  volume = {111},
  year = {2015}
}""",
    ),
    DatasetSpec(
        name="coco_stuff",
        title="COCO-Stuff 164k",
        short_title="COCO-171",
        layout="coco_stuff:open_coco_stuff",
        class_list="coco_stuff_171",
        ignore_labels=(255,),
        num_images={"train": (118_287,), "val": (5_000,)},
        unseen_ids=_COCO_UNSEEN,
        stuff_ids=tuple(range(80, 171)),
        downloads={
            "train images": Download(f"{_COCO_IMAGES}/train2017.zip", 19_336_861_798),
            "val images": Download(f"{_COCO_IMAGES}/val2017.zip", 815_585_330),
            "labels": Download(f"{_COCO_STUFF}/stuffthingmaps_trainval2017.zip", 690_000_000),
        },
        description=(
            "All photos of COCO 2017 with a label for nearly every pixel: 80 classes of things and "
            "91 of stuff, as contiguous ids 0 to 170."
        ),
        homepage="https://github.com/nightrome/cocostuff",
        citation="""@inproceedings{caesar2018cocostuff,
  title = {{COCO-Stuff}: Thing and Stuff Classes in Context},
  author = {Caesar, Holger and Uijlings, Jasper and Ferrari, Vittorio},
  booktitle = {CVPR},
  year = {2018}
}""",
    ),
    DatasetSpec(
        name="coco_panoptic",
        title="COCO panoptic",
        short_title="COCO-133",
        layout="panoptic:open_coco_panoptic_2017",
        class_list="coco_panoptic_133",
        ignore_labels=(0,),
        num_images={"train": (118_287,), "val": (5_000,)},
        stuff_ids=tuple(range(80, 133)),
        downloads={
            "train images": Download(f"{_COCO_IMAGES}/train2017.zip", 19_336_861_798),
            "val images": Download(f"{_COCO_IMAGES}/val2017.zip", 815_585_330),
        },
        obtaining=(
            "The labels are panoptic_annotations_trainval2017.zip of https://cocodataset.org; "
            "extract it, and the archives in it"
        ),
    ),
    DatasetSpec(
        name="ade20k_panoptic",
        title="ADE20K-150, panoptic",
        short_title="A-150 panoptic",
        layout="panoptic:open_ade20k_panoptic",
        class_list="ade20k_150",
        ignore_labels=(0,),
        num_images={"train": (20_210,), "val": (2_000,)},
        stuff_ids=_ADE_150_STUFF_IDS,
        obtaining=(
            "ADEChallengeData2016 with ade20k_panoptic_<split>.json and the folder of its name, "
            "which datasets/prepare_ade20k_pan_seg.py of "
            "https://github.com/facebookresearch/Mask2Former makes"
        ),
    ),
    DatasetSpec(
        name="cityscapes",
        title="Cityscapes",
        short_title="Cityscapes",
        layout="cityscapes:open_cityscapes",
        class_list="cityscapes_19",
        ignore_labels=(0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255),
        num_images={"train": (2_975,), "val": (500,)},
        stuff_ids=tuple(range(11)),
        obtaining=(
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip need a registration at "
            "https://www.cityscapes-dataset.com"
        ),
    ),
    DatasetSpec(
        name="shapes_world",
        title="Shapes world",
        short_title="Shapes-42",
        layout="shapes_world:open_shapes_world",
        class_list="shapes_world",
        ignore_labels=(255,),
        num_images={"train": (1_200,), "val": (300,)},
        unseen_ids=tuple(map(CLASS_NAMES.index, unseen_classes(split=0))),
        stuff_ids=tuple(range(len(OBJECTS), len(CLASS_NAMES))),
        obtaining=(
            "It is drawn rather than downloaded: by python -m maft_jax.cli.demo, or into a new "
            "folder by input_pipeline.shapes_world.folder.write_shapes_world"
        ),
    ),
)
SPECS: dict[str, DatasetSpec] = {spec.name: spec for spec in _ALL}
"""In the order of papers."""
