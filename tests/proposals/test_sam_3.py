"""SAM 3, whose prompts are the class names: a small random model, beside the library's steps."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
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


def test_without_names_and_of_the_part_for_points_it_is_refused_at_once(folder, tmp_path):
    with pytest.raises(ValueError, match="sam3 makes masks of class names, and got none; give"):
        TransformersProposals(folder)
    (tmp_path / "config.json").write_text('{"model_type": "sam3_tracker"}')
    with pytest.raises(ValueError, match="got 'sam3_tracker'; SAM 3 is asked for class names"):
        TransformersProposals(str(tmp_path), NAMES)


def test_a_name_that_does_not_fit_the_prompt_is_refused(folder):
    name = " ".join(["cat"] * 40)
    with pytest.raises(ValueError, match=r"class 'cat cat.*expected at most 32 tokens.*got 42"):
        TransformersProposals(folder, (name,))(make_example(), 5)
