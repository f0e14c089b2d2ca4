"""What the tiny CLIP depends on, apart from library versions."""

from dataclasses import dataclass

from maft_jax.config.fields import setting

TOWERS = ("vit", "convnext")


@dataclass(frozen=True)
class ClipTrainingConfig:
    tower: str = setting(
        "vit",
        "vit = both towers from nothing; convnext = an image tower for the package's text tower, "
        "which stays as it is",
        choices=TOWERS,
    )
    seed: int = setting(0, "of pictures, captions, their order and the first parameters", low=0)
    num_steps: int = setting(1600, "contrastive steps", low=1)
    batch_size: int = setting(128, "pictures per step", low=2)
    num_captions: int = setting(
        1, "of each picture in a step, which are contrasted one after the other", low=1, high=4
    )
    num_pictures: int = setting(24_000, "different pictures that are drawn", low=100)
    quiz_size: int = setting(500, "pictures of single objects that it is quizzed with", low=100)
    learning_rate: float = setting(5e-4, "highest, after the warm-up; then a cosine to 0", low=0)
    warmup_steps: int = setting(100, "of a learning rate that rises from 0", low=0)
    weight_decay: float = setting(0.1, "of matrices, but for the token embedding", low=0)
    max_gradient_norm: float = setting(1.0, "to which larger gradients are clipped", low=0)
