"""EoMT and SAM 2: small random models, compared with what the library makes of them."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    EomtConfig,
    EomtForUniversalSegmentation,
    EomtImageProcessorPil,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from maft_jax.proposals import transformers_models
from maft_jax.proposals.transformers_models import TransformersProposals
from tests.proposals.test_transformers_models import make_example, save


def _eomt():
    torch.manual_seed(0)
    config = EomtConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_blocks=1,
        num_queries=5,
        num_upscale_blocks=2,
        num_register_tokens=0,
        num_labels=1,
    )
    return EomtForUniversalSegmentation(config).eval()


def test_eomts_queries_are_those_of_the_model_without_its_padding(tmp_path):
    """40 x 64 of 64 x 64 pixels, of which the logits are a quarter."""
    model = _eomt()
    processor = EomtImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True, do_split_image=False
    )
    proposals = TransformersProposals(save(tmp_path, model, processor))(make_example(40, 64), 5)
    with torch.inference_mode():
        outputs = model(processor(make_example(40, 64).image, return_tensors="pt")["pixel_values"])
    masks = outputs.masks_queries_logits[0].sigmoid().numpy()
    assert proposals.input_size == (40, 64) and masks.shape == (5, 16, 16)
    np.testing.assert_allclose(proposals.masks, masks[:, :10], atol=1e-6)
    logits = outputs.class_queries_logits[0]
    np.testing.assert_allclose(proposals.class_logits, logits[:, :-1], atol=1e-6)
    inside = masks[:, :10] > 0.5
    mean = (masks[:, :10] * inside).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1)
    best = logits.softmax(-1)[:, :-1].amax(-1).numpy()
    np.testing.assert_allclose(proposals.scores, best * mean, rtol=1e-5)


def test_eomt_without_a_processor_is_padded_to_its_square(tmp_path):
    proposals = TransformersProposals(save(tmp_path, _eomt()))(make_example(40, 64), 5)
    assert proposals.input_size == (40, 64)


def test_eomt_that_reads_pieces_of_an_image_is_refused(tmp_path):
    path = save(tmp_path, _eomt(), EomtImageProcessorPil(do_split_image=True))
    with pytest.raises(ValueError, match=r"do_split_image: expected false, got true"):
        TransformersProposals(path)


def _sam2():
    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=16, image_size=64)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=16,
        mlp_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        iou_head_hidden_dim=16,
    )
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
    )
    return Sam2Model(config).eval()


@pytest.mark.parametrize("with_processor", [True, False])
def test_sam_2_masks_are_those_of_the_library_for_the_same_points(
    with_processor, tmp_path, monkeypatch
):
    """Of a folder as the published ones call themselves; the image is stretched to a square."""
    monkeypatch.setattr(transformers_models, "_POINTS_PER_SIDE", 3)
    monkeypatch.setattr(transformers_models, "_POINTS_AT_ONCE", 4)
    monkeypatch.setattr(transformers_models, "_NMS_IOU", 1.0)
    model = _sam2()
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight *= 1e4
    processor = Sam2ImageProcessor(size={"height": 64, "width": 64})
    path = save(tmp_path, model, processor if with_processor else None)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"model_type": "sam2_video"}))
    proposals = TransformersProposals(path)(make_example(40, 64), 100)
    steps = [64 / 6, 64 / 2, 64 * 5 / 6]
    points = torch.tensor([[[x, y]] for y in steps for x in steps])
    inputs = processor(
        make_example(40, 64).image, input_data_format="channels_last", return_tensors="pt"
    )
    with torch.inference_mode():
        outputs = model(pixel_values=inputs["pixel_values"], input_points=points[None])
    masks = outputs.pred_masks[0].flatten(0, 1)
    occupied = (masks > 0).any(dim=(1, 2)).numpy()
    scores = outputs.iou_scores[0].flatten().numpy()
    order = np.argsort(-scores, kind="stable")
    order = order[occupied[order]]
    assert proposals.input_size == (64, 64) and len(order) > 9
    np.testing.assert_allclose(proposals.scores, scores[order], atol=1e-6)
    np.testing.assert_allclose(proposals.masks, masks[order].sigmoid(), atol=2e-3)
