"""Folders of runs as earlier versions left them."""

import dataclasses
import json
import logging

from etils import epath

from maft_jax.config import Config
from maft_jax.config_sections import LossConfig
from maft_jax.runtime.workdir import describe_run
from maft_jax.state.restored_run import read_run_config


def write_config_of_version_0_1(folder, logit_scale: float) -> Config:
    """Its config.json, where the logit scale was loss.temperature; returns what it means."""
    config = Config(loss=LossConfig(logit_scale=logit_scale))
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, pretrained="random:tiny")
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root="photos"))
    values = dataclasses.asdict(config)
    values["loss"]["temperature"] = values["loss"].pop("logit_scale")
    (folder / "config.json").write_text(json.dumps(values))
    return config


def test_settings_of_version_0_1_are_read_under_their_names_of_today(tmp_path):
    config = write_config_of_version_0_1(tmp_path, 50.0)
    assert read_run_config(tmp_path) == config


def test_a_resumed_run_of_version_0_1_reports_only_what_changed(tmp_path, caplog):
    config = write_config_of_version_0_1(tmp_path, 50.0)
    with caplog.at_level(logging.WARNING):
        describe_run(epath.Path(tmp_path), config)
        assert caplog.messages == []
        write_config_of_version_0_1(tmp_path, 20.0)
        describe_run(epath.Path(tmp_path), config)
    assert caplog.messages == ["config.loss.logit_scale was 20.0 when this run began, now 50.0"]
