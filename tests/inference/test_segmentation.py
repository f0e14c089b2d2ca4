"""maft_jax.segment: names, proposals, background, and what it says to wrong input."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image
from skimage.measure import regionprops

import maft_jax
from input_pipeline.class_lists import BUILT_IN
from input_pipeline.eval_pipeline import EvalGeometry, make_eval_batch, make_eval_dataset
from input_pipeline.examples import Example, PreparedExample
from input_pipeline.numpy_dataset import NumpyBatches
from input_pipeline.sample_folder import draw_scene
from maft_jax.inference import result, row_strips
from maft_jax.inference.overlay import blend
from maft_jax.inference.segmentation import ImageSegmenter, Segmentation, class_regions
from maft_jax.inference.segmenter import InferenceSpec, Segmenter
from maft_jax.inference.vocabulary import parse_names, read_names, read_names_file
from maft_jax.models.clip import CLIP_SIZES, random_parameters
from maft_jax.models.text.sentencepiece_tokenizer import TokenizerFile
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.proposals.soft_masks import soften_masks
from maft_jax.proposals.superpixels import SuperpixelProposals
from tests.siglip_files import unpacked
from tests.tiny_models import ip_clip

NAMES = ("cat", "sofa", "salt, pepper")
NUM_PROPOSALS = 16


@pytest.fixture(scope="module")
def clip() -> maft_jax.Clip:
    return dataclasses.replace(maft_jax.load("random:tiny", 2), image_size=96)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.asarray(draw_scene(np.random.default_rng(0), (128, 96))[0])


@pytest.fixture(scope="module")
def segmenter(clip) -> ImageSegmenter:
    return ImageSegmenter(clip, NAMES, num_proposals=NUM_PROPOSALS)


def halves(image) -> np.ndarray:
    """Masks of the left and of the right half."""
    left = np.zeros(image.shape[:2], bool)
    left[:, : image.shape[1] // 2] = True
    return np.stack([left, ~left])


class OneExample:
    """The simplest PreparedSource."""

    class_names = NAMES
    example_ids = ("image",)
    fingerprint = ""
    num_proposals = NUM_PROPOSALS
    max_classes_per_image = 1

    def __init__(self, example: PreparedExample):
        self.example = example
        self.image_sizes = np.array([example.image.shape[:2]], np.int32)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.example


def test_segment_is_what_its_parts_compute(clip, image, segmenter):
    unlabelled = np.full(image.shape[:2], -1, np.int32)
    made = SuperpixelProposals()(Example("image", image, unlabelled), NUM_PROPOSALS)
    soft = soften_masks(made.masks, image.shape[:2])
    example = PreparedExample("image", image, unlabelled, soft, made.scores)
    (batch,) = NumpyBatches(
        make_eval_dataset(
            OneExample(example), global_batch_size=1, geometry=EvalGeometry(), num_workers=1
        )
    )
    for key, array in make_eval_batch(example, NUM_PROPOSALS, EvalGeometry()).items():
        np.testing.assert_array_equal(array, batch[key], err_msg=key)

    encoder = ip_clip(clip.config.vision, 2)
    parts = Segmenter(InferenceSpec(encoder, (96, 96)))
    batch = {key: jax.device_put(array) for key, array in batch.items()}
    visual = {key: value for key, value in clip.parameters["visual"].items()}
    probabilities = parts.class_probabilities(
        visual, jax.device_put(clip.encode_text(NAMES)), batch
    )
    pixels = parts.label_maps(probabilities, batch)

    result = segmenter(image)
    np.testing.assert_array_equal(result.label_map, pixels.label_map[0, :96, :128])
    np.testing.assert_array_equal(result.proposal_probabilities, probabilities[0])
    np.testing.assert_array_equal(result.image, image)
    assert result.class_names == NAMES and result.proposals.shape == (NUM_PROPOSALS, 160, 214)
    again = maft_jax.segment(clip, image, 'cat, sofa, "salt, pepper"', num_proposals=NUM_PROPOSALS)
    np.testing.assert_array_equal(again.label_map, result.label_map)


def test_strips_of_an_image_have_the_bits_of_the_whole(segmenter, monkeypatch):
    pixels = np.random.default_rng(3).integers(0, 256, (200, 90, 3), np.uint8)
    whole = segmenter(pixels)
    monkeypatch.setattr(row_strips, "_PIXELS_AT_A_TIME", 128 * 64)
    strips = segmenter(pixels)
    np.testing.assert_array_equal(strips.label_map, whole.label_map)
    np.testing.assert_array_equal(strips.score, whole.score)


def test_sums_over_strips_have_the_bits_of_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 3, (50, 70), np.int32)
    scores = rng.random(labels.shape, np.float32)
    made = Segmentation(
        np.zeros((50, 70, 3), np.uint8),
        ("a", "b", "c"),
        labels,
        scores,
        np.zeros((0, 1, 1), np.uint8),
        np.zeros((0, 3), np.float32),
    )
    monkeypatch.setattr(result, "_PIXELS_AT_A_TIME", 700)
    expected = np.bincount(labels.ravel() + 1, scores.ravel())[1:]
    for region in class_regions(made):
        assert region.num_pixels == (labels == region.index).sum()
        assert region.mean_score == expected[region.index] / region.num_pixels


def test_sums_of_a_large_image_take_little_memory():
    size = (2000, 3000)
    image = np.zeros((*size, 3), np.uint8)
    labels = np.arange(size[0] * size[1], dtype=np.int32).reshape(size) // 10**6
    scores = np.full(size, 0.5, np.float32)
    names = tuple("abcdef")
    made = Segmentation(
        image, names, labels, scores, np.zeros((0, 1, 1), np.uint8), np.zeros((0, 6), np.float32)
    )
    tracemalloc.start()
    assert [region.num_pixels for region in class_regions(made)] == 6 * [10**6]
    blend(image, labels, {i: (9, 9, 9) for i in range(6)}, 0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * labels.size  # bytes, of which the picture has three for each pixel


def test_pixels_of_one_proposal_have_its_best_class_and_its_probability(segmenter, image):
    result = segmenter(image, halves(image))
    best = result.proposal_probabilities.argmax(axis=1)
    for half, columns in zip((0, 1), (np.s_[:, :52], np.s_[:, 76:]), strict=True):
        assert np.all(result.label_map[columns] == best[half])
        expected = result.proposal_probabilities[half, best[half]]
        np.testing.assert_allclose(result.score[columns], expected, atol=1e-5)


def test_uncovered_pixels_have_no_class(segmenter, image):
    result = segmenter(image, halves(image)[:1])
    assert np.all(result.label_map[:, :52] >= 0) and np.all(result.label_map[:, 76:] == -1)
    assert np.all(result.score[:, 76:] == 0)
    nothing = segmenter(image, halves(image)[:0])
    assert np.all(nothing.label_map == -1) and np.all(nothing.score == 0)
    assert nothing.proposals.shape[0] == 0


def test_background_names_compete_but_are_not_shown(clip, image):
    settings = {"num_proposals": NUM_PROPOSALS}
    together = ImageSegmenter(clip, ["cat", "sofa", "sky"], **settings)(image)
    apart = ImageSegmenter(clip, "cat, sofa", background="sky", **settings)(image)
    shown = np.where(together.label_map >= 2, -1, together.label_map)
    np.testing.assert_array_equal(apart.label_map, shown)
    np.testing.assert_array_equal(apart.score, together.score)
    np.testing.assert_array_equal(
        apart.proposal_probabilities, together.proposal_probabilities[:, :2]
    )
    assert apart.class_names == ("cat", "sofa") and apart.background == ("sky",)


def test_kinds_of_images_agree(segmenter, image, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = segmenter(image).label_map
    Image.fromarray(image).save(tmp_path / "photo.png")
    turned = Image.fromarray(np.rot90(image))
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        kinds = [tmp_path / "photo.png", str(tmp_path / "turned.png"), "~/photo.png", opened]
        kinds += [Image.fromarray(image), Image.fromarray(image).convert("RGBA")]
        for kind in kinds:
            np.testing.assert_array_equal(segmenter(kind).label_map, expected)


def test_generators_masks_find_their_example_by_its_name(clip, image, tmp_path):
    from maft_jax.proposals.external import ExternalProposals

    np.savez(tmp_path / "photo.npz", masks=halves(image))
    Image.fromarray(image).save(tmp_path / "photo.png")
    generator = ExternalProposals(str(tmp_path))
    segmenter = ImageSegmenter(clip, NAMES, num_proposals=NUM_PROPOSALS, generator=generator)
    expected = segmenter(image, halves(image)).label_map
    (tmp_path / "photo.png").rename(tmp_path / "moved.png")
    given = segmenter(tmp_path / "moved.png", example_id="photo")
    np.testing.assert_array_equal(given.label_map, expected)


def test_prepared_image_serves_several_vocabularies(clip, segmenter, image):
    other = ImageSegmenter(clip, ["dog", "car", "tree"], num_proposals=NUM_PROPOSALS)
    prepared = segmenter.prepare(image)
    np.testing.assert_array_equal(
        other.segment_prepared(prepared).label_map, other(image).label_map
    )


def test_more_masks_than_num_proposals_are_all_used(clip, segmenter, image):
    few = ImageSegmenter(clip, NAMES, num_proposals=4)
    result = few(image, np.repeat(halves(image), 5, axis=0))
    np.testing.assert_array_equal(result.label_map, segmenter(image, halves(image)).label_map)
    assert result.proposal_probabilities.shape == (10, 3)


def test_masks_may_be_on_the_device(segmenter, image):
    result = segmenter(image, jax.device_put(halves(image)))
    np.testing.assert_array_equal(result.label_map, segmenter(image, halves(image)).label_map)


def test_one_class_alone_gets_a_hint(clip, caplog):
    ImageSegmenter(clip, ["cat"], templates=["{}", "a {}", "the {}"])
    assert "every pixel becomes 'cat' with score 1; give background names" in caplog.text


@pytest.mark.parametrize(
    ("classes", "background", "message"),
    [
        ("", "", "classes: expected at least one name, got none"),
        ([], "", "classes: expected at least one name, got none"),
        ("cat,, dog", "", "classes: name 2 of 3 is empty"),
        (["cat", " "], "", "classes: name 2 of 2 is empty"),
        ("cat, dog, Cat", "", "classes: 'Cat' comes twice, as names 1 and 3"),
        ('"salt, pepper', "", "classes: .* in '\"salt, pepper'; a name with a comma"),
        ("cat\ndog", "", "classes: expected one line of names"),
        ("cat", "dog, CAT", "background: 'CAT' is one of the classes as well"),
        ("cat", "dog, dog", "background: 'dog' comes twice"),
        ("cat, " + "very " * 80 + "long", "", "class name 'very very .*shorten it"),
    ],
)
def test_wrong_names_are_refused(clip, classes, background, message):
    with pytest.raises(ValueError, match=message):
        ImageSegmenter(clip, classes, background=background)


def test_names_that_the_towers_own_tokenizer_cannot_tell_apart_are_refused(tmp_path):
    """CLIP's can, by which names are read before the weights are."""
    file = TokenizerFile.open(unpacked("tokenizer_siglip", "spiece.model", tmp_path))
    tiny = CLIP_SIZES["siglip_tiny-random"]
    text = SigLipTextConfig(64, 1, 70, 32, 64, head_width=16).with_tokenizer(file)
    config = dataclasses.replace(tiny, text=text)
    siglip = maft_jax.Clip(config, random_parameters(config), 0, image_size=64)
    with pytest.raises(ValueError, match="classes: 'wall other' comes twice"):
        ImageSegmenter(siglip, ["wall-other", "wall other"])


def test_background_that_is_a_synonym_of_a_class_is_refused(clip):
    message = "background: 'Kitten' is a name of 'cat' as well: CLIP cannot tell it from 'kitten'"
    with pytest.raises(ValueError, match=message):
        ImageSegmenter(
            clip, "dog, cat", background="sky, Kitten", synonyms={"cat": ["tom", "kitten"]}
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda i, m: (i[..., 0], m), r"image: expected uint8 \[height, width, 3\], got uint8"),
        (lambda i, m: (i / 255, m), "image: expected uint8 .* got float64"),
        (lambda i, m: ("no.jpg", m), r"no\.jpg: expected an image, there is no such file"),
        (lambda i, m: (i, m[:, :, :64]), r"proposals: masks of 96 x 64 .* image of 96 x 128"),
        (lambda i, m: (i, m[0]), r"proposals: expected masks \[n, h, w\]"),
        (lambda i, m: (i, m.astype(np.uint8)), r"0 and 1 only, but 255 means inside"),
        (lambda i, m: (i, m * np.float32(2)), r"proposals: expected masks in \[0, 1\]"),
        (lambda i, m: (i, m.astype(int)), r"proposals: expected masks .* of bool.* got int64"),
    ],
)
def test_wrong_images_and_masks_are_refused(segmenter, image, wrong, message):
    with pytest.raises(ValueError, match=message):
        segmenter(*wrong(image, halves(image)))


def test_weights_that_cannot_read_names_are_refused(clip, image):
    alone = dataclasses.replace(
        clip,
        config=dataclasses.replace(clip.config, text=None),
        parameters={"visual": clip.parameters["visual"]},
    )
    with pytest.raises(ValueError, match="these weights have no text tower"):
        maft_jax.segment(alone, image, "cat, sofa")


def test_embeddings_of_names_are_kept_between_runs(clip, tmp_path):
    for _ in range(2):
        ImageSegmenter(clip, NAMES, templates=["{}"], cache_dir=tmp_path)
    assert len(list(tmp_path.rglob("*.npy"))) == 1


def test_areas_scores_and_boxes_are_those_of_scikit_image():
    rng = np.random.default_rng(3)
    labels = np.full((60, 90), -1, np.int32)
    for index in (4, 0, 2, 7):
        y, x = rng.integers(0, 40, 2)
        labels[y : y + rng.integers(5, 30), x : x + rng.integers(5, 40)] = index
    score = rng.random(labels.shape, np.float32)
    names = tuple("abcdefgh")
    segmentation = Segmentation(
        image=np.zeros((60, 90, 3), np.uint8),
        class_names=names,
        label_map=labels,
        score=score,
        proposals=np.zeros((0, 15, 23), np.uint8),
        proposal_probabilities=np.zeros((0, 8), np.float32),
    )
    regions = class_regions(segmentation)
    expected = {region.label - 1: region for region in regionprops(labels + 1, score)}
    assert {region.index for region in regions} == set(expected)
    assert [region.num_pixels for region in regions] == sorted(
        (int(region.area) for region in expected.values()), reverse=True
    )
    for region in regions:
        theirs = expected[region.index]
        top, left, bottom, right = theirs.bbox
        assert region.name == names[region.index] and region.num_pixels == theirs.area
        assert region.box == (left, top, right - left, bottom - top)
        np.testing.assert_allclose(region.mean_score, theirs.intensity_mean, rtol=1e-5)
        np.testing.assert_allclose(region.share, theirs.area / labels.size)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_list_is_a_vocabulary(name):
    assert len(read_names(name)) == len(set(read_names(name))) > 1


def test_misspelt_built_in_list_is_no_class():
    with pytest.raises(ValueError, match="no built-in list 'ade20k_848'; did you mean ade20k_847"):
        read_names("ade20k_848")


def test_names_come_from_lines_files_and_built_in_lists(tmp_path):
    assert parse_names('"salt, pepper", cat,  a "big"  dog') == (
        "salt, pepper",
        "cat",
        'a "big" dog',
    )
    assert len(read_names("coco_stuff_171")) == 171 and read_names("coco") == ("coco",)
    path = tmp_path / "names.txt"
    path.write_text("salt, pepper\n猫\n")
    assert read_names_file(str(path)) == (("salt, pepper", "猫"), {})
    path.write_text("0:invalid_class_id\n1:person,child\n2:sky\n")
    assert read_names_file(str(path)) == (("person", "sky"), {"person": ("child",)})
    path.write_text("cat\nCat\n")
    with pytest.raises(ValueError, match="classes_file: 'Cat' comes twice"):
        read_names_file(str(path))


def test_class_of_several_names_scores_the_best_of_them(clip, image):
    names = ("cat", "sofa", "lamp", "tree")
    one_each = maft_jax.segment(clip, image, names, halves(image))
    several = maft_jax.segment(
        clip, image, names[:2], halves(image), synonyms={"sofa": ("lamp", "tree")}
    )
    assert several.class_names == ("cat", "sofa")
    best = one_each.proposal_probabilities[:, 1:].max(axis=1)
    odds = several.proposal_probabilities[:, 1] / several.proposal_probabilities[:, 0]
    np.testing.assert_allclose(odds, best / one_each.proposal_probabilities[:, 0], rtol=1e-3)
    with pytest.raises(ValueError, match="synonyms: expected names of classes, 'dog' is none of 2"):
        maft_jax.segment(clip, image, names[:2], synonyms={"dog": ["puppy"]})
