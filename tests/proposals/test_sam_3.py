"""SAM 3, whose prompts are class names or points: small random models, and the library's steps."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    Sam3TrackerModel,
    Sam3VideoConfig,
    Sam3VideoModel,
    Sam3VisionConfig,
    Sam3ViTConfig,
)

from maft_jax.convert.transformers_processor import processor_files
from maft_jax.models.clip import CLIP_SIZES
from maft_jax.proposals import transformers_models
from maft_jax.proposals.transformers_models import TransformersProposals
from tests.proposals.test_transformers_models import make_example, save

NAMES = ("cat", "traffic light")


def sam_3():
    torch.manual_seed(0)
    backbone = Sam3ViTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=56,
        window_size=2,
        global_attn_indexes=[0],
        pretrain_image_size=56,
    )
    vision = Sam3VisionConfig(
        backbone_config=backbone,
        fpn_hidden_size=32,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    width = {"hidden_size": 32, "num_attention_heads": 2}
    layer = {**width, "num_layers": 1, "intermediate_size": 16}
    config = Sam3Config(
        vision_config=vision,
        text_config=text | {"vocab_size": 49408},
        geometry_encoder_config=layer,
        detr_encoder_config=layer,
        detr_decoder_config=layer | {"num_queries": 5},
        mask_decoder_config=width,
    )
    return Sam3Model(config).eval()


@pytest.fixture(scope="module")
def model():
    return sam_3()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """With CLIP's tokenizer, which is SAM 3's, and the size of its images."""
    path = tmp_path_factory.mktemp("sam3")
    for name, text in processor_files(CLIP_SIZES["ViT-B-16"]).items():
        if name != "preprocessor_config.json":
            (path / name).write_text(text)
    return save(path, model, Sam3ImageProcessor(size={"height": 56, "width": 56}))


def test_masks_of_all_names_are_those_of_the_library(folder, model, monkeypatch):
    monkeypatch.setattr(transformers_models, "_NMS_IOU", 1.0)
    generator = TransformersProposals(folder, NAMES)
    proposals = generator(make_example(40, 64), 100)
    processor = Sam3ImageProcessor(size={"height": 56, "width": 56})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = processor(
        make_example(40, 64).image, input_data_format="channels_last", return_tensors="pt"
    )
    masks, scores = [], []
    for name in NAMES:
        tokens = tokenizer([name], padding="max_length", max_length=32, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(pixel_values=inputs["pixel_values"], **tokens)
        (found,) = Sam3ImageProcessor().post_process_instance_segmentation(outputs, threshold=0)
        scores.append(found["scores"])
        masks.append(outputs.pred_masks[0])
    scores, masks = torch.cat(scores), torch.cat(masks)
    occupied = (masks > 0).any(dim=(1, 2))
    order = torch.argsort(-scores, stable=True)
    order = order[occupied[order]]
    assert generator.reads_names and len(order) > 5
    assert proposals.input_size == (56, 56)
    np.testing.assert_allclose(proposals.scores, scores[order], atol=1e-6)
    np.testing.assert_allclose(proposals.masks, masks[order].sigmoid(), atol=2e-3)
    others = TransformersProposals(folder, ("dog",))(make_example(40, 64), 100)
    assert len(others.scores) <= 5 and not np.isin(others.scores, proposals.scores).all()


def test_without_names_it_is_refused_at_once(folder):
    with pytest.raises(ValueError, match="sam3 makes masks of class names, and got none; give"):
        TransformersProposals(folder)


def write_whole_model(path, model) -> None:
    """With the names of the published weights, of which the library writes one prefix twice."""
    widths = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tracker = {
        "vision_config": model.config.vision_config.to_dict(),
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 56},
        "mask_decoder_config": widths | {"mlp_dim": 16, "iou_head_hidden_dim": 16},
        "image_size": 56,
        "memory_attention_hidden_size": 32,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 16,
        "memory_encoder_hidden_size": 32,
        "memory_encoder_output_channels": 16,
        "mask_downsampler_embed_dim": 32,
        "memory_fuser_embed_dim": 32,
        "memory_fuser_intermediate_dim": 16,
    }
    config = Sam3VideoConfig(detector_config=model.config.to_dict(), tracker_config=tracker)
    torch.manual_seed(1)
    Sam3VideoModel(config).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    once = {
        name.replace("tracker_model.tracker_model.", "tracker_model."): tensor
        for name, tensor in tensors.items()
    }
    save_file(once, path / "model.safetensors", {"format": "pt"})


def test_the_part_for_points_makes_masks_without_names(model, tmp_path, monkeypatch):
    """Of the whole model, in the two lines of docs/proposals.md; a name would change nothing."""
    monkeypatch.setattr(transformers_models, "_POINTS_PER_SIDE", 3)
    monkeypatch.setattr(transformers_models, "_POINTS_AT_ONCE", 4)
    monkeypatch.setattr(transformers_models, "_NMS_IOU", 1.0)
    write_whole_model(tmp_path / "sam3", model)
    tracker, loaded = Sam3TrackerModel.from_pretrained(tmp_path / "sam3", output_loading_info=True)
    assert not loaded["missing_keys"]
    with torch.no_grad():  # masks of random weights are nearly flat
        for mlp in tracker.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight *= 1e4
    tracker.save_pretrained(tmp_path / "sam3_points")
    generator = TransformersProposals(str(tmp_path / "sam3_points"), NAMES)
    proposals = generator(make_example(40, 64), 100)
    inputs = Sam3ImageProcessor(size={"height": 56, "width": 56})(
        make_example(40, 64).image, input_data_format="channels_last", return_tensors="pt"
    )
    steps = [56 / 6, 56 / 2, 56 * 5 / 6]
    points = torch.tensor([[[[x, y]] for y in steps for x in steps]])
    with torch.inference_mode():
        outputs = tracker.eval()(pixel_values=inputs["pixel_values"], input_points=points)
    masks, scores = outputs.pred_masks[0].flatten(0, 1), outputs.iou_scores[0].flatten().numpy()
    order = np.argsort(-scores, kind="stable")
    order = order[(masks > 0).any(dim=(1, 2)).numpy()[order]]
    assert not generator.reads_names and proposals.input_size == (56, 56) and len(order) > 9
    np.testing.assert_allclose(proposals.scores, scores[order], atol=1e-6)
    np.testing.assert_allclose(proposals.masks, masks[order].sigmoid(), atol=2e-3)


def test_a_name_that_does_not_fit_the_prompt_is_refused(folder):
    name = " ".join(["cat"] * 40)
    with pytest.raises(ValueError, match=r"class 'cat cat.*expected at most 32 tokens.*got 42"):
        TransformersProposals(folder, (name,))(make_example(), 5)
