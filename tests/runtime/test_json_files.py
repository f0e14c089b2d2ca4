"""JSON that others wrote: numbers, nesting, size and kind."""

import json
import logging

import pytest
from etils import epath

from maft_jax.config.fields import build
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.towers.clip_vit import VisionConfig
from maft_jax.runtime.json_files import parse_json, read_json
from maft_jax.runtime.metric_logging import read_metrics, truncate_metrics


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": NaN}', "not readable as JSON: expected finite numbers, got NaN"),
        ('{"a": -Infinity}', "expected finite numbers, got -Infinity"),
        ('{"a": 1e999}', "expected finite numbers, got 1e999"),
        ('{"a": ' + "9" * 5000 + "}", "not readable as JSON: .*4300"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "expected a JSON object, got list"),
        (b"\xff", "not readable as JSON"),
        ("", "not readable as JSON"),
    ],
)
def test_what_json_cannot_mean_is_refused_with_the_place(content, message):
    with pytest.raises(ValueError, match=rf"^x\.json: {message}|^x\.json: not .*{message}"):
        parse_json(content, "x.json")


def test_a_document_above_the_limit_is_not_parsed(monkeypatch):
    monkeypatch.setenv("MAFT_JAX_MAX_JSON_BYTES", "5")
    with pytest.raises(ValueError, match=r"x: bytes of JSON: .*5, got 8.*MAFT_JAX_MAX_JSON_BYTES"):
        parse_json('{"a": 1}', "x")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json: not readable: No such file"):
        read_json(tmp_path / "a.json")


def test_metrics_are_read_up_to_a_cut_line_and_without_damaged_ones(tmp_path, caplog):
    lines = ['{"step": 1, "x": 0.1}', "\x00\x00", '{"x": 1}', '["step"]', '{"step": "1"}']
    lines += ['{"step": 2, "x": null}', '{"step": 3, "x"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    workdir = epath.Path(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [record["step"] for record in read_metrics(workdir)] == [1, 2]
    assert len(caplog.messages) == 4 and "line 2" in caplog.text, "not of the line that was cut"
    truncate_metrics(workdir, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == lines[0] + "\n"


def test_settings_of_others_have_defaults_and_types():
    sizes = {"width": 64, "layers": 2, "patch_size": 16, "image_size": 32, "embed_dim": 16}
    config = build(
        VisionConfig, {**sizes, "mlp_width": None, "norm_epsilon": 1}, "v", complete=False
    )
    assert config == VisionConfig(64, 2, 16, 32, 16, norm_epsilon=1.0)
    for changes, message in (
        ({"mlp_width": "3"}, r"v\.mlp_width: expected int, got '3'"),
        ({"mlp_width": True}, r"v\.mlp_width: expected int, got True"),
        ({"norm_epsilon": 10**400}, r"v\.norm_epsilon: expected float, got 1000"),
        ({"norm_epsilon": json.loads("1e999")}, r"v\.norm_epsilon: expected a finite number"),
        ({"depth": 3}, r"v: unknown fields \['depth'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            build(VisionConfig, sizes | changes, "v", complete=False)
    with pytest.raises(ValueError, match=r"v: missing fields \['image_size'\]$"):
        build(MaskingSpec, {"mask_start_layer": 1}, "v", complete=False)
