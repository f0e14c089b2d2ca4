"""Generators of the Mask2Former family give what the library's models give, and make records."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy
import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

import maft_jax
from input_pipeline.records.record_source import RecordSource
from maft_jax.config.sections import ProposalsConfig
from maft_jax.proposals.generators import make_generator
from maft_jax.proposals.precompute import precompute
from tests.convert.official_checkpoint import official_tensors
from tests.precompute_jobs import DrawnSource, make_job

SIZE = (40, 64)


@pytest.fixture(scope="module")
def mask2former():
    """Masks of random weights are almost flat; these are not."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        num_labels=2,
    )
    return Mask2FormerForUniversalSegmentation(config).eval()


@pytest.fixture(scope="module")
def folder(mask2former, tmp_path_factory):
    path = tmp_path_factory.mktemp("mask2former")
    mask2former.save_pretrained(path)
    Mask2FormerImageProcessorPil(size={"height": SIZE[0], "width": SIZE[1]}).save_pretrained(path)
    return path


def settings(path, generator="mask2former"):
    return ProposalsConfig(generator=generator, path=str(path))


@pytest.mark.slow
def test_records_hold_the_masks_of_the_library(folder, mask2former, tmp_path):
    source = DrawnSource(3, sizes=((30, 50), SIZE))
    generator = make_generator(settings(folder), source.class_names)
    precompute(make_job(tmp_path, source=source, generator=generator, num_proposals=4))
    records = RecordSource(tmp_path)
    processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
    for index in range(3):
        inputs = processor(source[index].image, return_tensors="pt")
        height, width = inputs["pixel_values"].shape[-2:]
        with torch.inference_mode():
            outputs = mask2former(**inputs)
        y, x = (
            (2 * torch.linspace(0, side - 1, side // 4, dtype=torch.float64) + 1) / side - 1
            for side in (height, width)
        )
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        masks = torch.nn.functional.grid_sample(
            outputs.masks_queries_logits.double(),
            grid[None],
            padding_mode="border",
            align_corners=False,
        )[0].sigmoid()
        logits = outputs.masks_queries_logits[0]
        mean = (logits.sigmoid() * (logits > 0)).sum((1, 2)) / ((logits > 0).sum((1, 2)) + 1e-6)
        scores = outputs.class_queries_logits[0].softmax(-1)[:, :-1].amax(-1) * mean
        order = torch.argsort(-scores)[:4]
        record = records.record(index)
        np.testing.assert_allclose(record.scores, scores[order], rtol=1e-5)
        np.testing.assert_allclose(
            record.class_logits, outputs.class_queries_logits[0][order], atol=1e-5
        )
        np.testing.assert_allclose(record.proposals, masks[order] * 255, atol=0.51)
        assert record.provenance.weights_fingerprint == generator.fingerprint


def test_fingerprint_is_that_of_weights_and_of_how_images_are_read(folder, mask2former, tmp_path):
    made = make_generator(settings(folder), ["sky"])
    assert make_generator(settings(folder), ["sky"]).fingerprint == made.fingerprint
    mask2former.save_pretrained(tmp_path)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    assert make_generator(settings(tmp_path), ["sky"]).fingerprint != made.fingerprint


@pytest.mark.parametrize("name", ["mask2former", "maskformer", "freeseg"])
def test_weights_are_needed(name):
    needs = rf"config\.proposals\.path: generator={name} needs the weights"
    with pytest.raises(ValueError, match=needs):
        make_generator(settings("", name), ["sky"])
    with pytest.raises(ValueError, match=f"{needs}.*there is no nowhere"):
        make_generator(settings("nowhere", name), ["sky"])


def test_weights_of_another_generator_are_refused(folder):
    with pytest.raises(ValueError, match=r"Mask2Former: .*for generator=freeseg, .*=mask2former"):
        make_generator(settings(folder, "freeseg"), ["sky"])


@pytest.mark.slow
def test_freeseg_reads_the_names_with_the_text_tower_of_its_file(tmp_path):
    """Of a checkpoint of the official layout with random weights, in records for the ensemble."""
    tensors = {
        name: np.abs(tensor) if name.endswith("running_var") else tensor
        for name, tensor in official_tensors().items()
    }
    path = tmp_path / "maft.safetensors"
    safetensors.numpy.save_file(tensors, path)
    source = DrawnSource(1, sizes=(SIZE,))
    generator = make_generator(settings(path, "freeseg"), source.class_names)
    others = make_generator(settings(path, "freeseg"), ("sky", "grass", "road"))
    assert others.fingerprint == generator.fingerprint  # names are part of the shards' keys
    clip = maft_jax.load(path)
    rows = generator.load()["text"]
    np.testing.assert_allclose(rows, clip.encode_text(source.class_names), atol=1e-6)
    generator = dataclasses.replace(generator, prepare=lambda image: image)
    precompute(make_job(tmp_path / "records", source=source, generator=generator))
    records = RecordSource(tmp_path / "records")
    assert records.record(0).class_logits.shape == (3, len(source.class_names) + 1)
