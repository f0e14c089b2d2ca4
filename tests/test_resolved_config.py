"""Once weights and devices are known, no setting stands for what somebody decides later."""

import dataclasses
import operator

from etils import epath

from maft_jax.config import Config
from maft_jax.config.evaluation_section import EvaluationRoots
from maft_jax.config.fields import field_names
from maft_jax.config.sections import DataConfig, MeshConfig, ModelConfig
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.models.encoder import MaskingSpec
from maft_jax.resolved_config import resolve
from maft_jax.runtime.sharding import make_mesh
from maft_jax.runtime.workdir import describe_run

LEFT_TO_OTHERS = Config(
    model=ModelConfig(pretrained="random:tiny", mask_start_layer=-1, image_size=0),
    data=DataConfig(root="photos"),
    mesh=MeshConfig(fsdp=2),
)
UNUSED = {
    "checkpoint",
    "model.activation",
    "model.modules",
    "model.tokenizer",
    "proposals.path",
    "generator.weights",
    "generator.backbone_weights",
    "evaluation.records",
    "evaluation.trained_classes",
    *field_names(EvaluationRoots, "evaluation.roots."),
}
"""Empty, since the weights tell it or nobody asked for it."""


def resolved(noted=None):
    mesh = make_mesh(LEFT_TO_OTHERS.mesh)
    return resolve(LEFT_TO_OTHERS, CLIP_SIZES["tiny"], noted, mesh)


def test_weights_and_devices_decide_what_the_settings_leave_to_them():
    config = resolved()
    assert (config.model.mask_start_layer, config.model.image_size) == (2, 480)
    assert resolved(MaskingSpec(3, 112)).masking == MaskingSpec(3, 112)
    assert config.model.compute_dtype == "float32"
    assert config.mesh == MeshConfig(data=4, fsdp=2, model=1)
    assert config.optimizer.trainable == CLIP_SIZES["tiny"].vision.default_trainable


def test_no_setting_is_left_open():
    values = {name: operator.attrgetter(name)(resolved()) for name in field_names(Config)}
    left_open = [name for name, value in values.items() if value in (-1, (-1,), "", "auto")]
    assert set(left_open) - UNUSED == {
        "data.ignore_labels",  # a class list has them
        "data.records",
        "data.cache_dir",
        "model.attention",
    }


def test_what_earlier_versions_left_open_has_not_changed(tmp_path, caplog):
    config, earlier = resolved(), LEFT_TO_OTHERS.mesh
    for compute_dtype, mesh in (("auto", earlier), ("float32", config.mesh)):
        model = dataclasses.replace(config.model, compute_dtype=compute_dtype)
        describe_run(epath.Path(tmp_path), dataclasses.replace(config, model=model, mesh=mesh))
    assert not caplog.messages
    for name, *values in (("compute_dtype", "float32", "bfloat16"), ("attention", "auto", "xla")):
        for old, new in (values, values[::-1]):
            model = dataclasses.replace(config.model, **{name: new})
            describe_run(epath.Path(tmp_path), dataclasses.replace(config, model=model))
            said = f"config.model.{name} was {old!r} when this run began, now {new!r}"
            assert caplog.messages.pop() == said
