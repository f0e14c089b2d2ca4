import pickle

import numpy as np
import pytest

from input_pipeline.examples import Example
from maft_jax.config import sections
from maft_jax.proposals.generator import ProposalGenerator
from maft_jax.proposals.generators import GENERATORS, make_generator


def _example():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    labels = np.zeros((40, 60), np.int32)
    labels[:, 30:] = 1
    return Example("a", image, labels)


def test_every_generator_of_the_configuration_can_be_made():
    assert set(GENERATORS) == set(sections.GENERATORS)


@pytest.mark.parametrize("name", ["superpixels", "ground_truth", "external"])
def test_generators_follow_the_protocol(name, tmp_path):
    np.savez(tmp_path / "a.npz", masks=np.ones((2, 40, 60), bool))
    settings = sections.ProposalsConfig(generator=name, path=str(tmp_path))
    generator = make_generator(settings, ["sky", "grass"])
    assert isinstance(generator, ProposalGenerator)
    assert generator.name == name and generator.fingerprint
    copy = pickle.loads(pickle.dumps(generator))
    assert copy.fingerprint == generator.fingerprint
    first, second = generator(_example(), 5), copy(_example(), 5)
    np.testing.assert_array_equal(first.masks, second.masks)
    np.testing.assert_array_equal(first.scores, second.scores)


def test_kinds_reach_the_ground_truth_generator():
    settings = sections.ProposalsConfig(generator="ground_truth", kinds=("unions",))
    (mask,) = make_generator(settings, ["sky", "grass"])(_example(), 5).masks
    assert mask.all()


@pytest.mark.parametrize("name", ["external", "transformers", "fcclip"])
def test_generators_of_files_need_a_path(name):
    with pytest.raises(ValueError, match=rf"config\.proposals\.path: generator={name} needs"):
        make_generator(sections.ProposalsConfig(generator=name), ["sky"])


def test_unknown_generator_is_refused():
    with pytest.raises(ValueError, match=r"expected one of \['superpixels', .*got 'boxes'"):
        make_generator(sections.ProposalsConfig(generator="boxes"), ["sky"])
