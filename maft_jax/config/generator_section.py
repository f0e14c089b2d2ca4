"""The section of the configuration that says which generator of proposals is trained."""

from dataclasses import dataclass

from maft_jax.config.fields import FROM_HERE, setting

BACKBONES = (
    "resnet50",
    "resnet101",
    "resnet50c",
    "resnet101c",
    "swin_tiny",
    "swin_small",
    "swin_base",
    "swin_large",
    "swin_nano",
)


@dataclass(frozen=True)
class GeneratorConfig:
    weights: str = setting(
        "",
        "of a whole generator to go on from, which then has its own sizes; empty = random ones of "
        "the sizes below",
        path=FROM_HERE,
    )
    backbone: str = setting(
        "resnet50", "c = DeepLab's, as FreeSeg has it; swin_nano for tiny worlds", choices=BACKBONES
    )
    backbone_weights: str = setting(
        "",
        "ImageNet's for a ResNet, with the names of torchvision or detectron2; empty = random",
        path=FROM_HERE,
    )
    classes: str = setting(
        "data",
        "what queries are told apart by: data = the training classes; agnostic = object or none; "
        "text = class names that come with every image, as in FreeSeg",
        choices=("data", "agnostic", "text"),
    )
    criterion: str = setting(
        "points",
        "points = Mask2Former's random points; dense = FreeSeg's focal loss of all pixels",
        choices=("points", "dense"),
    )
    num_points: int = setting(12544, "criterion=points: of each mask", low=4)
    queries: int = setting(100, "masks of an image", low=1)
    width: int = setting(256, "of pixel decoder, decoder and masks; a multiple of 32", low=32)
    encoder_layers: int = setting(6, "of the pixel decoder", low=1)
    decoder_layers: int = setting(9, "9 in Mask2Former, 10 in FreeSeg", low=1)
