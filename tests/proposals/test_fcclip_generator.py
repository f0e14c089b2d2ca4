"""Records of FC-CLIP's generator: what the official code makes, best first, and for which names."""

import numpy as np
import pytest
import torch

from input_pipeline.examples import Example
from maft_jax.config.sections import ProposalsConfig
from maft_jax.models.generators.image_preparation import ImagePreparation
from maft_jax.proposals.generators import make_generator
from tests.convert.official_checkpoint import official_tensors
from tests.fcclip_files import class_names, write_checkpoint
from tests.golden_files import golden


def settings(path) -> ProposalsConfig:
    return ProposalsConfig(generator="fcclip", path=str(path))


@pytest.mark.slow
def test_names_and_their_synonyms_are_part_of_what_records_depend_on(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "fcclip.pth")
    made = make_generator(settings(checkpoint), ["sky", "sea"])
    again = make_generator(settings(checkpoint), ["sky", "sea"], {})
    several = make_generator(settings(checkpoint), ["sky", "sea"], {"sky": ["clouds"]})
    assert made.fingerprint == again.fingerprint != several.fingerprint
    assert made.padded_size((118, 150)) == (128, 160)


@pytest.mark.slow
def test_checkpoint_of_another_system_is_refused(tmp_path):
    tensors = {name: torch.as_tensor(value) for name, value in official_tensors().items()}
    torch.save({"model": tensors}, tmp_path / "maft.pth")
    with pytest.raises(ValueError, match=r"FreeSeg .*expected a checkpoint of FC-CLIP"):
        make_generator(settings(tmp_path / "maft.pth"), ["sky"])


@pytest.mark.slow
def test_proposals_and_class_logits_are_the_official_ones(tmp_path, monkeypatch):
    as_it_is = ImagePreparation(stretch=False, shortest_edge=118, rounds=True)
    monkeypatch.setattr("maft_jax.convert.generators.FCCLIP_PREPARATION", as_it_is)
    arrays, names = golden("fcclip/expected"), class_names()
    generator = make_generator(
        settings(write_checkpoint(tmp_path / "fcclip.pth")),
        [first for first, *_ in names],
        {first: further for first, *further in names if further},
    )
    image = arrays["image_uint8"]
    made = generator(Example("a", image, np.zeros(image.shape[:2], np.int32)), 20)
    theirs = arrays["class_logits_per_layer"][-1, 0]
    nearest = np.abs(made.class_logits[:, None] - theirs).max(axis=2)
    order = nearest.argmin(axis=1)
    assert sorted(order) == [*range(20)]
    assert nearest.min(axis=1).max() < 5e-5 * np.abs(theirs).max()
    assert (np.diff(made.scores) <= 0).all()
    inside = torch.tensor(arrays["pred_masks"][:, order])
    masks = torch.nn.functional.interpolate(inside, (128, 160), mode="bilinear")[0].sigmoid()
    corners = masks[:, [0, 0, 117, 117], [0, 149, 0, 149]].numpy()
    ours = made.masks[:, [0, 0, -1, -1], [0, -1, 0, -1]] / 255
    np.testing.assert_allclose(ours, corners, atol=0.5 / 255 + 1e-5)
