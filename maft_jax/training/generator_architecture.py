"""The architecture that config.generator describes, and what of it is trained."""

from maft_jax.config.generator_section import GeneratorConfig
from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.pixel_decoder import PixelDecoderConfig
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.swin import SwinConfig
from maft_jax.models.generators.text_interaction import TextConfig

_DEEPLAB_STEM = (64, 64, 128)
_LAYERS_101 = (3, 4, 23, 3)

BACKBONES: dict[str, ResNetConfig | SwinConfig] = {
    "resnet50": ResNetConfig(),
    "resnet101": ResNetConfig(_LAYERS_101),
    "resnet50c": ResNetConfig(stem_widths=_DEEPLAB_STEM),
    "resnet101c": ResNetConfig(_LAYERS_101, stem_widths=_DEEPLAB_STEM),
    "swin_tiny": SwinConfig(),
    "swin_small": SwinConfig(blocks=(2, 2, 18, 2)),
    "swin_base": SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_large": SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
    "swin_nano": SwinConfig(32, (1, 1, 2, 1), (2, 4, 8, 16), 8),
}
"""Of config.generator_section.BACKBONES."""

TRAINABLE = (r"^(?!backbone/.*/norm/)",)
"""All but the four constants of the norms of a ResNet, whatever it is trained on."""


def make_architecture(
    settings: GeneratorConfig, num_classes: int | None, text_width: int | None
) -> Mask2FormerConfig:
    """For classes of the generator's own, or for text of a width.

    Inner widths are the official ones of a width of 256, in proportion.
    """
    width = settings.width
    text = None
    if text_width is not None:
        text = TextConfig(text_width, inner_width=8 * width, class_mlp_width=4 * width)
    return Mask2FormerConfig(
        BACKBONES[settings.backbone],
        PixelDecoderConfig(width, width, settings.encoder_layers, mlp_width=4 * width),
        DecoderConfig(width, settings.queries, settings.decoder_layers, mlp_width=8 * width),
        num_classes,
        text,
    )
