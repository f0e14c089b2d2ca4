"""The plain PyTorch rendition gives the numbers of the official code, recorded in tests/golden.

A missing golden file is a failure. Absolute tolerances: losses and features 1e-5, the distillation
loss 1e-8 at first (it is 1.7e-6) and 1e-7 later, gradients 2e-5 of the largest entry, parameters
after three steps 2e-6.
"""

import copy
import pathlib

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from maft_jax.benchmarks.pytorch import official_step
from maft_jax.benchmarks.pytorch.openai_clip import (
    clip_from_state_dict,
    random_clip,
    resize_position_embedding,
)

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
STEPS = dict(learning_rate=1e-4, total_steps=10, weight_decay=1e-2, distillation_weight=0.1)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "maft_small.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays if name != "class_names"}


@pytest.fixture(scope="module")
def operations():
    with np.load(GOLDEN / "pipeline_ops.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def teacher():
    state_dict = safetensors.torch.load_file(GOLDEN / "maft_small_teacher.safetensors")
    return clip_from_state_dict(state_dict).visual


@pytest.fixture
def student(teacher):
    tuned = safetensors.torch.load_file(GOLDEN / "maft_small_student.safetensors")
    student = copy.deepcopy(teacher)
    assert set(tuned) == set(official_step.trainable_parameters(student))
    student.load_state_dict(tuned, strict=False)
    return student


@pytest.fixture
def batch(golden):
    return (
        golden["images_nhwc"].permute(0, 3, 1, 2).contiguous(),
        golden["masks_uint8"].float() / 255,
        [golden["gt_labels_0"], golden["gt_labels_1"]],
        [golden["gt_masks_0"], golden["gt_masks_1"]],
    )


@pytest.fixture
def trainer(student, teacher, golden):
    start_layer = int(golden["start_layer"])
    return official_step.OfficialStep(
        student, teacher, start_layer, golden["text_features"], **STEPS
    )


def assert_close(value, expected, tolerance):
    torch.testing.assert_close(torch.as_tensor(value), expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_features_and_logits(student, teacher, golden, batch):
    images, masks, _, _ = batch
    features = official_step.proposal_features(student, images, masks, int(golden["start_layer"]))
    assert_close(features, golden["features"], 1e-5)
    text = golden["text_features"]
    assert_close(100 * features @ text.T, golden["class_logits"], 1e-3)  # 100 times the features
    for tower, name in ((teacher, "teacher_logits"), (student, "student_global_logits")):
        logits = 100 * official_step.image_features(tower, images) @ text.T
        assert_close(logits, golden[name], 1e-3)


def test_normalised_iou(golden, batch):
    _, masks, _, gt_masks = batch
    rows = [official_step.soft_iou(m, g) for m, g in zip(masks, gt_masks, strict=True)]
    normalised = official_step.normalise_rows(torch.cat(rows))
    assert_close(normalised, golden["normalised_iou"], 1e-5)


def test_losses_and_gradients(trainer, golden, batch):
    losses = trainer.losses(*batch)
    assert_close(losses["mask_aware_loss"].double(), golden["step0/mask_aware_loss"], 1e-5)
    expected = golden["step0/distillation_loss_weighted"]
    assert_close(losses["distillation_loss"].double(), expected, 1e-8)
    losses["loss"].backward()
    recorded = {n.removeprefix("grad/"): g for n, g in golden.items() if n.startswith("grad/")}
    assert set(recorded) == set(trainer.trainable)
    for name, gradient in recorded.items():
        tolerance = 2e-5 * gradient.abs().max().item()
        assert_close(trainer.trainable[name].grad, gradient, tolerance)


def test_three_steps(trainer, golden, batch):
    for step in range(3):
        result = trainer.step(*batch)
        recorded = golden[f"step{step}/mask_aware_loss"]
        assert_close(result["mask_aware_loss"].double(), recorded, 1e-5)
        recorded = golden[f"step{step}/distillation_loss_weighted"]
        assert_close(result["distillation_loss"].double(), recorded, 1e-7)
        grad_norm = golden[f"step{step}/grad_norm"]
        assert_close(result["grad_norm"].double(), grad_norm, 2e-5 * grad_norm.item())
        assert result["lr"] == pytest.approx(golden[f"step{step}/lr"].item(), rel=1e-12)
    for name, expected in golden.items():
        if name.startswith("after_steps/"):
            parameter = trainer.trainable[name.removeprefix("after_steps/")]
            assert_close(parameter.detach(), expected, 2e-6)


def test_position_embedding_is_resized_as_recorded(operations):
    native = torch.from_numpy(operations["posemb_14x14"])
    assert resize_position_embedding(native, (14, 14)) is native
    for h, w in ((30, 30), (10, 10), (20, 34)):
        expected = torch.from_numpy(operations[f"posemb_{h}x{w}"])
        assert_close(resize_position_embedding(native, (h, w)), expected, 1e-5)


def test_masks_and_iou_are_as_recorded(operations):
    logits = torch.from_numpy(operations["mask_logits_stride4_f16"]).float()[None]
    size = tuple(int(length) for length in operations["padded_size"])
    masks = F.interpolate(logits, size=size, mode="bilinear", align_corners=True).sigmoid()
    for side in (30, 34):
        allowed = official_step.masks_on_grid(masks, (side, side)).reshape(100, side, side)
        assert torch.equal(allowed, torch.from_numpy(operations[f"mask_grid_{side}_bool"]))
    gt_masks = torch.from_numpy(np.unpackbits(operations["gt_masks"], axis=-1))
    recorded = torch.from_numpy(operations["soft_iou"])
    # The record itself is 8.5e-6 off in its one full mask (float64 gives our value to 1.5e-7).
    assert_close(official_step.soft_iou(masks[0], gt_masks), recorded, 1e-5)
    # Hence from the recorded IoU: stretching to 0..1 would multiply that error by 1/(max - min).
    expected = torch.from_numpy(operations["soft_iou_normalised"])
    assert_close(official_step.normalise_rows(recorded), expected, 1e-6)


@pytest.fixture
def tiny():
    return random_clip(
        0,
        vision_width=64,
        vision_layers=3,
        patch_size=8,
        image_size=32,
        text_width=64,
        text_layers=1,
        embed_dim=32,
        vocab_size=50,
    )


@torch.no_grad()
def test_a_full_mask_in_the_last_layer_gives_the_feature_of_the_whole_image(tiny):
    images = torch.randn(2, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    masks = torch.ones(2, 1, 40, 48)
    features = official_step.proposal_features(tiny.visual, images, masks, 2)
    assert_close(features[:, 0], official_step.image_features(tiny.visual, images), 1e-5)


@torch.no_grad()
def test_text_features_ignore_what_follows_the_end_of_text(tiny):
    tokens = torch.tensor([[48, 3, 4, 49, 0, 0], [48, 3, 4, 49, 7, 9]])
    first, second = tiny.encode_text(tokens)
    assert_close(first, second, 1e-6)
    assert first.abs().max() > 0.01


@pytest.mark.parametrize("bfloat16", [False, True])
def test_any_number_of_proposals_and_images_without_classes(tiny, bfloat16):
    generator = torch.Generator().manual_seed(2)
    text = F.normalize(torch.randn(4, 32, generator=generator), dim=-1)
    student, before = copy.deepcopy(tiny.visual), tiny.visual.state_dict()
    trainer = official_step.OfficialStep(student, tiny.visual, 1, text, **STEPS, bfloat16=bfloat16)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    masks = torch.rand(3, 5, 16, 16, generator=generator)
    labels = [torch.tensor([2]), torch.tensor([], dtype=torch.long), torch.tensor([0, 1])]
    gt_masks = [torch.rand(len(k), 16, 16, generator=generator) > 0.5 for k in labels]
    result = trainer.step(images, masks, labels, gt_masks)
    assert all(np.isfinite(float(value)) for value in result.values())
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trainer.trainable), name


def test_attention_is_the_fused_one(tiny, monkeypatch):
    """Three passes of three layers: benchmarks compare with what PyTorch is good at."""
    fused, calls = F.scaled_dot_product_attention, []

    def spy(*arguments, **options):
        calls.append(arguments)
        return fused(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    text = F.normalize(torch.randn(4, 32, generator=torch.Generator().manual_seed(3)), dim=-1)
    student = copy.deepcopy(tiny.visual)
    trainer = official_step.OfficialStep(student, tiny.visual, 1, text, **STEPS)
    masks = torch.ones(1, 2, 32, 32)
    trainer.step(torch.zeros(1, 3, 32, 32), masks, [torch.tensor([0])], [masks[0, :1] > 0])
    assert len(calls) == 3 * 3
