"""Trains a CLIP small enough for a repository on pictures of shapes world and their captions.

As CLIP is: contrastive, on whole pictures and sentences, all classes named, no masks.
"""

import dataclasses
import functools
import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization, struct
from jax import lax
from jaxtyping import Array, Float, UInt8

from input_pipeline.shapes_world.scenes import SIZE
from input_pipeline.shapes_world.vocabulary import COLORS, OBJECTS
from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.configs.shapes_world import get_config
from maft_jax.convert.formats import ClipWeights, default_format, read_weights, write_weights
from maft_jax.losses.contrastive import contrastive_loss
from maft_jax.models.clip import ClipConfig, clip_config, convnext_clip, random_parameters
from maft_jax.models.encoder import EncoderSettings, ImageArchitecture
from maft_jax.models.first_positions import with_sines
from maft_jax.models.text_classifier import embed_classes
from maft_jax.runtime import stop_requests, tree_rules
from maft_jax.runtime.atomic_files import atomic_write
from maft_jax.runtime.only_writer import only_writer
from maft_jax.runtime.sealed_files import read_sealed, write_sealed
from maft_jax.runtime.sharding import one_device_mesh
from maft_jax.runtime.stop_signals import StopSignals, TrainingInterrupted
from maft_jax.shapes_world.caption_pairs import CaptionPairs, Quiz, draw_pairs, draw_quiz
from maft_jax.shapes_world.clip_training_config import ClipTrainingConfig
from maft_jax.weights import BUILT_IN

CLIP = clip_config(
    width=128,
    layers=4,
    patch_size=16,
    image_size=SIZE,
    text_width=64,
    text_layers=2,
    embed_dim=64,
)
"""Two thirds of its parameters are the vocabulary's."""
CLIPS = {
    "vit": CLIP,
    "convnext": dataclasses.replace(
        convnext_clip((16, 32, 64, 128), CLIP.text.embed_dim, SIZE, 1, depths=(1, 1, 2, 1)),
        text=CLIP.text,
    ),
}
"""By config.tower. The ConvNeXt's last map has 4 x 4 cells."""
WEIGHTS_FILE, CURVE_FILE, STATE_FILE = "clip.safetensors", "clip.json", "unfinished.msgpack"

_MAX_SCALE = 100.0
"""Of similarities, as in CLIP."""
_FIRST_LAYER_SCALE = 1.0
"""Of a ConvNeXt's blocks, whose own beginning, 1e-6, is made for much longer training."""
_LOG_EVERY, _QUIZ_EVERY = 50, 100
_QUIZ_BATCH = 100

logger = logging.getLogger(__name__)


@struct.dataclass
class _State:
    parameters: Mapping
    moments: optax.OptState


def train_clip(config: ClipTrainingConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Writes WEIGHTS_FILE (float16) and CURVE_FILE to `workdir`; returns the path of the weights.

    A run that was interrupted goes on from its last quiz.

    Raises:
        TrainingInterrupted: SIGINT or SIGTERM came; the state is kept.
        ValueError: `workdir` holds a run with other settings.
        FolderInUse: another run writes there.
    """
    with only_writer(workdir, "--workdir"):
        return _train_clip(config, workdir)


def _train_clip(config: ClipTrainingConfig, workdir: pathlib.Path) -> pathlib.Path:
    optimizer = _optimizer(config)
    parameters = _first_parameters(config)
    state = _State(parameters, optimizer.init(parameters))
    state, curve = _resumed(state, config, workdir)
    if len(curve["loss"]) < config.num_steps:
        pairs = draw_pairs(config.num_pictures, config.seed)
        quiz = draw_quiz(config.quiz_size, config.seed)
        with StopSignals() as signals, stop_requests.saving():
            state = _train(config, optimizer, state, curve, pairs, quiz, workdir, signals)
    weights = workdir / WEIGHTS_FILE
    halves = jax.tree.map(lambda x: np.asarray(x, np.float16), jax.device_get(state.parameters))
    clip = CLIPS[config.tower]
    layout = default_format(weights, clip)
    write_weights(ClipWeights.of(clip, halves), weights, layout, dtype="source")
    return weights


def _train(
    config: ClipTrainingConfig,
    optimizer: optax.GradientTransformation,
    state: _State,
    curve: dict,
    pairs: CaptionPairs,
    quiz: Quiz,
    workdir: pathlib.Path,
    signals: StopSignals,
) -> _State:
    clip = CLIPS[config.tower]
    started, first = time.monotonic(), len(curve["loss"])
    for step in range(first, config.num_steps):
        batch = pairs.batch(step, config.batch_size, config.seed, config.num_captions)
        state, loss = _step(clip, optimizer, state, batch)
        curve["loss"].append(loss)
        done = step + 1
        last = done == config.num_steps or signals.agreed() is not None
        if done % _LOG_EVERY == 0:
            left = (time.monotonic() - started) / (done - first) * (config.num_steps - done)
            mean = float(np.mean(jax.device_get(curve["loss"][-_LOG_EVERY:])))
            logger.info("step %d of %d: loss %.3f, %.0f s left", done, config.num_steps, mean, left)
        if last or done % _QUIZ_EVERY == 0:
            curve["loss"] = [round(float(x), 4) for x in jax.device_get(curve["loss"])]
            curve["quiz"].append({"step": done} | quiz_accuracy(clip, state.parameters, quiz))
            logger.info("quiz: %s", curve["quiz"][-1])
            _keep(state, curve, workdir)
        if signals.agreed() is not None:
            raise TrainingInterrupted(signals.agreed(), done)
    return state


@functools.cache
def architecture(clip: ClipConfig) -> str:
    """Settings of the towers, names and shapes of their parameters: what has another is another."""
    shapes = jax.eval_shape(lambda: random_parameters(clip))
    named = {name: leaf.shape for name, leaf in tree_rules.flatten(shapes).items()}
    return repr((clip, named))


def quiz_accuracy(clip: ClipConfig, parameters: Mapping, quiz: Quiz) -> dict[str, float]:
    """Fractions of pictures whose object, its pattern, its colour is named right.

    Among the names of all objects, with the prompts that are used everywhere.
    """
    names = embed_classes(clip.text, parameters["text"], OBJECTS, PROMPT_TEMPLATES)
    pictures = np.array_split(quiz.images, max(1, len(quiz.images) // _QUIZ_BATCH))
    visual = parameters["visual"]
    features = np.concatenate([_encode(clip.vision, visual, part) for part in pictures])
    named = (features @ names.T).argmax(axis=1)
    pattern, color = np.divmod(named, len(COLORS))
    right_pattern, right_color = np.divmod(quiz.objects, len(COLORS))
    return {
        "object": float(np.mean(named == quiz.objects)),
        "pattern": float(np.mean(pattern == right_pattern)),
        "color": float(np.mean(color == right_color)),
    }


def _first_parameters(config: ClipTrainingConfig) -> dict:
    """Random; of a ConvNeXt, the text tower and the scale are the package's, and stay."""
    clip = CLIPS[config.tower]
    parameters = random_parameters(clip, config.seed)
    if config.tower == "vit":
        return parameters | {"visual": with_sines(clip.vision, parameters["visual"])}
    visual = tree_rules.flatten(parameters["visual"])
    for name in visual:
        if name.endswith("layer_scale"):
            visual[name] = jnp.full_like(visual[name], _FIRST_LAYER_SCALE)
    package = read_weights(BUILT_IN[get_config().model.pretrained]).parameters()
    return package | {"visual": tree_rules.unflatten(visual)}


def _optimizer(config: ClipTrainingConfig) -> optax.GradientTransformation:
    """AdamW; vectors and the token embedding, most of whose rows are never read, do not decay."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(config.warmup_steps, config.num_steps // 4), config.num_steps
    )

    def decays(parameters: Mapping) -> dict:
        flat = tree_rules.flatten(parameters)
        return tree_rules.unflatten(
            {name: np.ndim(x) > 1 and "embedding" not in name for name, x in flat.items()}
        )

    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.adamw(schedule, b2=0.98, weight_decay=config.weight_decay, mask=decays),
    )
    if config.tower == "vit":
        return optimizer
    kept = {"visual": False, "text": True, "logit_scale": True}
    return optax.selective_transform(optimizer, freeze_mask=kept)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _step(
    clip: ClipConfig,
    optimizer: optax.GradientTransformation,
    state: _State,
    batch: Mapping[str, Array],
) -> tuple[_State, Float[Array, ""]]:
    loss, gradient = jax.value_and_grad(_loss)(state.parameters, clip, batch)
    updates, moments = optimizer.update(gradient, state.moments, state.parameters)
    parameters = optax.apply_updates(state.parameters, updates)
    parameters["logit_scale"] = jnp.minimum(parameters["logit_scale"], math.log(_MAX_SCALE))
    return _State(parameters, moments), loss


def _loss(parameters: Mapping, clip: ClipConfig, batch: Mapping[str, Array]) -> Float[Array, ""]:
    images = _encode(clip.vision, parameters["visual"], batch["images"])
    num_captions, batch_size, length = batch["tokens"].shape
    texts = clip.text.encode(parameters["text"], batch["tokens"].reshape(-1, length))
    texts = texts.reshape(num_captions, batch_size, -1)
    if clip is not CLIP:  # whose text tower was trained before
        texts = lax.stop_gradient(texts)
    scale = jnp.exp(parameters["logit_scale"])
    loss_of = jax.vmap(lambda text, content: contrastive_loss(images, text, scale, content))
    return jnp.mean(loss_of(texts, batch["content"]))


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    vision: ImageArchitecture, visual: Mapping, images: UInt8[Array, "b h w 3"]
) -> Float[Array, "b e"]:
    """Of whole pictures of the size in which they are drawn, in float32."""
    settings = EncoderSettings(vision.default_masking, one_device_mesh(), attention="xla")
    encoder = vision.make_encoder(settings)
    return encoder.encode_images(visual, encoder.normalise(images))


def _keep(state: _State, curve: Mapping, workdir: pathlib.Path) -> None:
    """The state has the curve in it, so that the two always belong together."""
    text = json.dumps(curve) + "\n"
    kept = {"state": serialization.to_state_dict(jax.device_get(state)), "curve": text}
    write_sealed(workdir / STATE_FILE, serialization.msgpack_serialize(kept))
    with atomic_write(workdir / CURVE_FILE) as aside:
        aside.write_text(text)


def _resumed(
    state: _State, config: ClipTrainingConfig, workdir: pathlib.Path
) -> tuple[_State, dict]:
    """What an earlier run kept, or the state as given and a curve without points."""
    settings = dataclasses.asdict(config)
    content = read_sealed(workdir / STATE_FILE)
    if content is None:
        return state, {"settings": settings, "loss": [], "quiz": []}
    kept = serialization.msgpack_restore(content)
    curve = json.loads(kept["curve"])
    # Settings that came later have as defaults what was done before.
    curve["settings"] = dataclasses.asdict(ClipTrainingConfig()) | curve["settings"]
    if curve["settings"] != settings:
        raise ValueError(
            f"{workdir}: expected an empty folder or a run with the settings {settings}, got one "
            f"with {curve['settings']}; choose another --workdir"
        )
    logger.info("going on after step %d", len(curve["loss"]))
    return serialization.from_state_dict(state, kept["state"]), curve
