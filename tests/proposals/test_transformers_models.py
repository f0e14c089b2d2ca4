"""Small random models, compared with the library's own post-processing."""

import importlib.util
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    DetrConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    MaskFormerImageProcessorPil,
    SamConfig,
    SamImageProcessorPil,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SwinConfig,
)

from input_pipeline.examples import IGNORE, Example
from maft_jax.proposals import transformers_models
from maft_jax.proposals.generator import ProposalGenerator
from maft_jax.proposals.transformers_models import TransformersProposals

_SIZE = {"shortest_edge": 64, "longest_edge": 128}


def make_example(height=37, width=61):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Example("a", image, np.full((height, width), IGNORE, np.int32))


def _swin():
    return SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _mask2former(num_labels=3):
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=_swin(),
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        num_labels=num_labels,
    )
    return Mask2FormerForUniversalSegmentation(config).eval()


def _maskformer(num_labels=3):
    torch.manual_seed(0)
    decoder = DetrConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
    )
    config = MaskFormerConfig(
        backbone_config=_swin(),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=num_labels,
    )
    return MaskFormerForInstanceSegmentation(config).eval()


def _sam():
    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=16,
        output_channels=16,
        num_pos_feats=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        window_size=2,
        global_attn_indexes=[0],
        mlp_dim=16,
    )
    prompt = SamPromptEncoderConfig(hidden_size=16, image_size=64)
    decoder = SamMaskDecoderConfig(
        hidden_size=16,
        mlp_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        iou_head_hidden_dim=16,
    )
    model = SamModel(
        SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    )
    return model.eval()


def save(folder, model, processor=None):
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("model", "processor"),
    [
        (_mask2former(), Mask2FormerImageProcessorPil(size=_SIZE)),
        (_maskformer(), MaskFormerImageProcessorPil(size=_SIZE)),
    ],
    ids=["mask2former", "maskformer"],
)
def test_queries_are_those_of_the_model(model, processor, tmp_path):
    proposals = TransformersProposals(save(tmp_path, model, processor))(make_example(), 5)
    inputs = processor(make_example().image, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    assert proposals.input_size == tuple(inputs["pixel_values"].shape[-2:])
    masks = outputs.masks_queries_logits[0].sigmoid().numpy()
    np.testing.assert_allclose(proposals.masks, masks, atol=1e-6)
    assert proposals.class_logits.shape == (5, 3)
    probabilities = np.asarray(outputs.class_queries_logits[0].softmax(-1))
    void = outputs.class_queries_logits[0, :, -1:].numpy()
    both = np.exp(np.concatenate([proposals.class_logits, void], axis=1))
    np.testing.assert_allclose(both / both.sum(1, keepdims=True), probabilities, atol=1e-6)


def test_maskformer_scores_and_masks_are_those_of_the_instance_post_processing(tmp_path):
    # With one class, the library ranks every query once, as we do.
    model, processor = _maskformer(num_labels=1), MaskFormerImageProcessorPil(size=_SIZE)
    proposals = TransformersProposals(save(tmp_path, model, processor))(make_example(), 5)
    with torch.inference_mode():
        outputs = model(**processor(make_example().image, return_tensors="pt"))
    (reference,) = processor.post_process_instance_segmentation(
        outputs, threshold=0.0, return_binary_maps=True
    )
    expected = [segment["score"] for segment in reference["segments_info"]]
    occupied = (proposals.masks > 0.5).any(axis=(1, 2))
    np.testing.assert_allclose(np.sort(proposals.scores[occupied]), np.sort(expected), atol=2e-6)
    np.testing.assert_array_equal(
        np.sort((proposals.masks[occupied] > 0.5).sum(axis=(1, 2))),
        np.sort(reference["segmentation"].sum((1, 2)).numpy()),
    )


def test_padding_of_the_processor_is_cropped_away(tmp_path):
    # 37 x 61 becomes 64 x 106, a multiple of neither the stride 4 nor 32, in a frame of 128 x 128.
    processor = Mask2FormerImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 106},
        size_divisor=0,
        pad_size={"height": 128, "width": 128},
    )
    model = _mask2former()
    proposals = TransformersProposals(save(tmp_path, model, processor))(make_example(), 5)
    inputs = processor(make_example().image, return_tensors="pt")
    valid = inputs["pixel_mask"][0].numpy()
    assert valid.shape == (128, 128)
    height, width = valid.any(axis=1).sum(), valid.any(axis=0).sum()
    assert proposals.input_size == (height, width) and width % 4
    assert proposals.masks.shape == (5, round(height / 4), round(width / 4))
    with torch.inference_mode():
        logits = model(**inputs).masks_queries_logits
    # The library's way: up to the padded input, crop, down to where the mask's pixels lie.
    full = torch.nn.functional.interpolate(logits, (128, 128), mode="bilinear")
    expected, uncropped = (
        torch.nn.functional.interpolate(masks, proposals.masks.shape[1:], mode="bilinear")[0]
        for masks in (full[..., :height, :width], full)
    )
    error = np.abs(proposals.masks - expected.sigmoid().numpy()).mean()
    assert error < 0.2 * np.abs(proposals.masks - uncropped.sigmoid().numpy()).mean()


def test_logits_keep_their_place_when_padding_ends_inside_a_pixel():
    def plane(size, covered):
        y, x = ((np.arange(n) + 0.5) / n * side for n, side in zip(size, covered, strict=True))
        return 3 * y[:, None] - 2 * x[None]

    logits = torch.from_numpy(plane((32, 40), (128, 160)))[None]
    cropped = transformers_models._crop_padding(logits, (128, 160), (67, 106))[0].numpy()
    assert cropped.shape == (17, 26)
    # A bilinear surface has no slope within half a pixel of the frame's border.
    np.testing.assert_allclose(cropped[1:, 1:], plane((17, 26), (67, 106))[1:, 1:], atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (150, 100)])
def test_images_of_any_size_have_proposals(size, tmp_path):
    path = save(tmp_path, _mask2former(), Mask2FormerImageProcessorPil(size=_SIZE))
    proposals = TransformersProposals(path)(make_example(*size), 5)
    assert len(proposals.masks) == 5 and np.isfinite(proposals.scores).all()


def test_folder_without_processor_gets_the_defaults_of_its_model(tmp_path):
    proposals = TransformersProposals(save(tmp_path, _sam()))(make_example(), 3)
    assert proposals.input_size == (39, 64)


def test_sam_masks_are_those_of_the_library_for_the_same_points(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_models, "_POINTS_PER_SIDE", 3)
    monkeypatch.setattr(transformers_models, "_POINTS_AT_ONCE", 4)
    monkeypatch.setattr(transformers_models, "_NMS_IOU", 1.0)
    model = _sam()
    with torch.no_grad():
        # A random decoder's masks are almost flat: make them differ.
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight *= 1e4
    processor = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}
    )
    proposals = TransformersProposals(save(tmp_path, model, processor))(make_example(40, 64), 100)
    # Centres of a 3 x 3 grid of cells over 64 x 40 pixels, (x, y).
    steps = [1 / 6, 1 / 2, 5 / 6]
    points = torch.tensor([[[64 * x, 40 * y]] for y in steps for x in steps])
    inputs = processor(make_example(40, 64).image, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(pixel_values=inputs["pixel_values"], input_points=points[None])
    (masks,) = processor.post_process_masks(
        outputs.pred_masks[0][None],
        inputs["original_sizes"],
        inputs["reshaped_input_sizes"],
        binarize=False,
        pad_size={"height": 64, "width": 64},
    )
    scores = outputs.iou_scores[0].flatten().numpy()
    occupied = (outputs.pred_masks[0].flatten(0, 1)[:, :10] > 0).any(dim=(1, 2)).numpy()
    order = np.argsort(-scores, kind="stable")
    order = order[occupied[order]]
    np.testing.assert_allclose(proposals.scores, scores[order], atol=1e-6)
    # 40 x 64 pixels are 10 x 16 of the mask; half precision.
    logits = np.log(proposals.masks / (1 - proposals.masks))
    direct = outputs.pred_masks[0].flatten(0, 1)[order, :10].numpy()
    np.testing.assert_allclose(logits, direct, atol=1e-3 * np.abs(direct).max())
    # Enlarged they are the library's masks, except where the library sees the padding.
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], (40, 64), mode="bilinear"
    )[0, :, :38]
    reference = masks.flatten(0, 1)[order, :38]
    np.testing.assert_allclose(enlarged, reference, atol=1e-3 * np.abs(direct).max())


def test_overlapping_masks_lose_against_the_better_one():
    masks = torch.zeros(5, 10, 10, dtype=torch.bool)
    masks[0, :, :5] = True
    masks[1, :, :6] = True  # IoU 5/6 with the first
    masks[2, :, 4:] = True  # IoU 1/10 with the first, 2/10 with the second
    masks[4, :, :3] = True  # IoU 3/5 with the first, 3/6 with the second
    scores = torch.tensor([0.7, 0.8, 0.5, 0.9, 0.75])
    kept = transformers_models._suppress_overlaps(masks, scores, 10)
    assert kept.tolist() == [1, 4, 2]
    assert transformers_models._suppress_overlaps(masks, scores, 2).tolist() == [1, 4]


def test_generator_is_pickled_without_its_model(tmp_path):
    path = save(tmp_path, _maskformer(), MaskFormerImageProcessorPil(size=_SIZE))
    generator = TransformersProposals(path)
    assert isinstance(generator, ProposalGenerator)
    first = generator(make_example(), 5)
    data = pickle.dumps(generator)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data)(make_example(), 5).masks, first.masks)


def test_fingerprint_changes_with_weights_and_processor(tmp_path):
    model = _maskformer()
    path = save(tmp_path, model)
    fingerprints = [TransformersProposals(path).fingerprint]
    assert TransformersProposals(path).fingerprint == fingerprints[0]
    with torch.no_grad():
        model.class_predictor.bias[0] += 1e-6
    fingerprints.append(TransformersProposals(save(tmp_path, model)).fingerprint)
    MaskFormerImageProcessorPil(size=_SIZE).save_pretrained(tmp_path)
    fingerprints.append(TransformersProposals(path).fingerprint)
    assert len(set(fingerprints)) == 3


def test_weights_that_lack_tensors_are_refused(tmp_path):
    model = _maskformer()
    state = {k: v for k, v in model.state_dict().items() if "class_predictor" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"missing or of another shape: \['class_predictor"):
        TransformersProposals(str(tmp_path))(make_example(), 5)


def test_pickled_weights_are_refused(tmp_path):
    model = _maskformer()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"expected weights as \*\.safetensors"):
        TransformersProposals(str(tmp_path))


def test_other_models_and_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected the folder of a transformers model"):
        TransformersProposals(str(tmp_path))
    transformers.CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type: expected one of .*got 'clip'"):
        TransformersProposals(str(tmp_path))


def test_missing_packages_are_named_with_the_command(tmp_path, monkeypatch):
    path = save(tmp_path, _maskformer())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs torch and transformers: pip install"):
        TransformersProposals(path)


def test_torch_and_transformers_are_not_imported_with_the_module():
    program = (
        "import sys, maft_jax.proposals.generators;"
        "assert not {'torch', 'transformers', 'pycocotools'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
