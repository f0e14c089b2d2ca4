"""TFDS's own test of a builder for each of ours, and what that test does not look at."""

import io
import pathlib
import pickle
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline.builders.ade20k_150 import Ade20k150
from input_pipeline.builders.ade20k_full import Ade20kFull
from input_pipeline.builders.coco_stuff import CocoStuff
from input_pipeline.builders.folder import Folder
from input_pipeline.builders.pascal_context import PascalContext
from input_pipeline.builders.published import BUILDERS as PUBLISHED
from input_pipeline.builders.voc2012 import Voc2012
from input_pipeline.dataset_specs import SPECS
from input_pipeline.examples import IGNORE
from input_pipeline.layouts import open_dataset
from tests.input_pipeline.builders.raw_data_sets import NUM_IMAGES, WRITERS

# TFDS 4.9.10 reads its own metadata with a property that protobuf 6 deprecates.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        r"ignore:label\(\) is deprecated:DeprecationWarning:tensorflow_datasets"
    ),
]

# (class, its arguments, name of the data set for open_dataset, bits of a label)
BUILDERS = [
    (
        PUBLISHED[spec.name.removesuffix(f"_{spec.config}")],
        {"config": spec.config} if spec.config else {},
        spec.name,
        8 if spec.num_classes < 256 else 16,
    )
    for spec in SPECS.values()
    if spec.citation and spec.name != "shapes_world"  # whose builder has a test of its own
]
BUILDERS += [(Folder, {}, "folder", 16)]
every_builder = pytest.mark.parametrize(("builder_class", "arguments", "dataset", "bits"), BUILDERS)


class _DummyDataTest:
    """The files are written when the test runs, so that none has to be kept in the repository."""

    SPLITS = {"train": NUM_IMAGES["train"], "validation": NUM_IMAGES["val"]}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        WRITERS[cls.DATASET_CLASS.name](pathlib.Path(folder.name))
        cls.EXAMPLE_DIR = folder.name
        super().setUpClass()


class CocoStuffTest(_DummyDataTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = CocoStuff


class Voc2012Test(_DummyDataTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Voc2012


class Ade20k150Test(_DummyDataTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Ade20k150


class Ade20kFullTest(_DummyDataTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Ade20kFull


class PascalContextTest(_DummyDataTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = PascalContext


class FolderTest(_DummyDataTest, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = Folder
    SPLITS = {"train": NUM_IMAGES["train"]}  # noqa: RUF012


def test_every_builder_has_dummy_data_and_the_test_of_tfds():
    tested = {case.DATASET_CLASS for case in _DummyDataTest.__subclasses__()}
    for builder_class, _, dataset, _ in BUILDERS:
        name = builder_class.__name__
        assert builder_class.name in WRITERS, (
            f"{dataset} has a citation in dataset_specs.py, and so a builder: a function that "
            f"writes images of it belongs into raw_data_sets.WRITERS as {builder_class.name!r}"
        )
        assert builder_class in tested, f"{dataset}: class {name}Test(...) with DATASET_CLASS here"


@pytest.mark.parametrize(
    "spec", [spec for spec in SPECS.values() if spec.citation], ids=lambda spec: spec.name
)
def test_published_data_sets_have_builders_by_their_names(spec, tmp_path):
    builder_class = PUBLISHED[spec.name.removesuffix(f"_{spec.config}")]
    assert tfds.builder_cls(builder_class.name) is builder_class
    builder = builder_class(data_dir=tmp_path, config=spec.config or None)
    assert builder.dataset == spec.name
    assert (builder.info.description, builder.info.homepage) == (spec.description, spec.homepage)
    assert tuple(builder.info.metadata["class_names"]) == spec.classes.names


def test_the_59_classes_of_pascal_context_are_its_default(tmp_path):
    assert PascalContext(data_dir=tmp_path).dataset == "pascal_context_59"


@pytest.fixture
def prepare(tmp_path):
    def prepared(builder_class, data_dir="data", **arguments):
        root = tmp_path / "raw"
        if not root.exists():
            root.mkdir()
            WRITERS[builder_class.name](root)
        builder = builder_class(data_root=root, data_dir=tmp_path / data_dir, **arguments)
        builder.download_and_prepare()
        return builder, root

    return prepared


def examples_of(builder, split, **options):
    return list(tfds.as_numpy(builder.as_dataset(split=split, **options)))


@every_builder
def test_examples_are_those_of_the_raw_files(prepare, builder_class, arguments, dataset, bits):
    builder, root = prepare(builder_class, **arguments)
    ignore_label = 2**bits - 1
    assert builder.info.metadata["ignore_label"] == ignore_label
    for split, name in (("train", "train"), ("val", "validation")):
        if name not in builder.info.splits:
            continue
        source = open_dataset(dataset, root, split)
        assert tuple(builder.info.metadata["class_names"]) == source.class_names
        decoders = {"image": tfds.decode.SkipDecoding()}
        stored = examples_of(builder, name, decoders=decoders)
        assert [row["image_id"].decode() for row in stored] == list(source.example_ids)
        for index, row in enumerate(stored):
            assert row["image"] == source.image_bytes(index)
            labels = row["label_map"][..., 0].astype(np.int32)
            expected = source[index].label_map
            assert (expected == IGNORE).any() and (expected >= 0).any()
            np.testing.assert_array_equal(
                np.where(labels == ignore_label, IGNORE, labels), expected
            )


@every_builder
def test_label_maps_are_png_of_the_promised_depth(prepare, builder_class, arguments, dataset, bits):
    builder, _ = prepare(builder_class, **arguments)
    skip = {"label_map": tfds.decode.SkipDecoding()}
    for row in examples_of(builder, "train", decoders=skip):
        with Image.open(io.BytesIO(row["label_map"])) as label_map:
            assert label_map.format == "PNG"
            assert label_map.mode == {8: "L", 16: "I;16"}[bits]
    assert examples_of(builder, "train")[0]["label_map"].dtype == f"uint{bits}"


def test_largest_class_and_ignore_label_survive_in_16_bits(prepare):
    builder, _ = prepare(Ade20kFull)
    values = np.unique(examples_of(builder, "train")[0]["label_map"])
    np.testing.assert_array_equal(values, [0, 14, 846, 65535])


@every_builder
def test_building_twice_gives_the_same_files(prepare, builder_class, arguments, dataset, bits):
    files = []
    for data_dir in ("one", "two"):
        builder, _ = prepare(builder_class, data_dir, **arguments)
        folder = pathlib.Path(builder.data_dir)
        records = sorted(folder.glob("*.tfrecord*"))
        files.append({path.name: path.read_bytes() for path in records})
    assert files[0] == files[1]
    assert files[0]


def test_prepared_data_needs_no_raw_files(prepare, tmp_path):
    builder, _ = prepare(Folder)
    again = Folder(data_dir=tmp_path / "data")
    assert again.info.metadata["class_names"] == ["cat", "dog", "bird"]
    assert len(examples_of(again, "train")) == len(examples_of(builder, "train"))


def test_loads_by_name_as_other_tfds_data_sets(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    WRITERS["voc2012"](raw)
    dataset, info = tfds.load(
        "voc2012",
        split="validation[:1]",
        data_dir=tmp_path / "data",
        builder_kwargs={"data_root": raw},
        with_info=True,
    )
    (row,) = tfds.as_numpy(dataset)
    assert row["image"].shape == (*row["label_map"].shape[:2], 3)
    assert info.metadata["class_names"][0] == "aeroplane"


def test_names_of_a_folder_go_with_the_builder_to_another_process(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    WRITERS["folder"](raw)
    (raw / "images").rename(raw / "photos")
    (raw / "classes.txt").rename(raw / "names.txt")
    builder = Folder(
        data_root=raw, images="photos", classes="names.txt", data_dir=tmp_path / "data"
    )
    builder = pickle.loads(pickle.dumps(builder))
    builder.download_and_prepare()
    assert len(examples_of(builder, "train")) == NUM_IMAGES["train"]


def test_configurations_of_pascal_context_are_kept_apart(prepare):
    small, _ = prepare(PascalContext, config="59")
    large, _ = prepare(PascalContext, config="459")
    assert small.data_dir != large.data_dir
    assert len(small.info.metadata["class_names"]) == 59
    assert len(large.info.metadata["class_names"]) == 459
    assert small.info.features["label_map"].dtype == np.uint8
    copy = pickle.loads(pickle.dumps(large))
    assert copy.data_dir == large.data_dir


def test_missing_files_are_named(tmp_path):
    builder = CocoStuff(data_root=tmp_path, data_dir=tmp_path / "data")
    with pytest.raises(ValueError, match=r"stuffthingmaps_trainval2017\.zip"):
        builder.download_and_prepare()


def test_corrupt_image_stops_the_build(prepare, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    WRITERS["coco_stuff"](raw)
    path = raw / "train2017" / "000000000002.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"train2017/000000000002\.jpg: "):
        prepare(CocoStuff)
    assert not Folder(data_dir=tmp_path / "data").info.splits
