"""TFDS's own test of the builder that draws, and its scenes against those of the folder."""

import pathlib
import pickle
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline.builders.shapes_world import ShapesWorld
from input_pipeline.layouts import open_dataset
from input_pipeline.shapes_world.folder import write_shapes_world

# TFDS 4.9.10 reads its own metadata with a property that protobuf 6 deprecates.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:label\(\) is deprecated:DeprecationWarning:tensorflow_datasets"
)

COUNTS = {"num_train": 3, "num_val": 2}


class ShapesWorldTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = ShapesWorld
    SPLITS = {"train": 3, "validation": 2}  # noqa: RUF012

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.EXAMPLE_DIR = folder.name
        super().setUpClass()

    def _make_builder(self, config=None):
        return ShapesWorld(**COUNTS, data_dir=self.tmp_dir, config=config, version=self.VERSION)


def prepared(data_dir, **arguments):
    builder = ShapesWorld(**COUNTS, data_dir=data_dir, **arguments)
    builder.download_and_prepare()
    return builder


def examples_of(builder, split, **options):
    return list(tfds.as_numpy(builder.as_dataset(split=split, **options)))


def test_examples_are_those_of_the_folder_byte_for_byte(tmp_path):
    builder = prepared(tmp_path / "data", seed=5)
    write_shapes_world(tmp_path / "folder", seed=5, **COUNTS)
    for split, name in (("train", "train"), ("val", "validation")):
        source = open_dataset("shapes_world", tmp_path / "folder", split)
        stored = examples_of(builder, name, decoders={"image": tfds.decode.SkipDecoding()})
        lines = (tmp_path / "folder" / split / "captions.tsv").read_text().splitlines()
        written = [f"{row['image_id'].decode()}\t{row['caption'].decode()}" for row in stored]
        assert written == lines
        for index, row in enumerate(stored):
            assert row["image"] == source.image_bytes(index)
            np.testing.assert_array_equal(row["label_map"][..., 0], source[index].label_map)
        assert tuple(builder.info.metadata["class_names"]) == source.class_names
    assert builder.info.metadata["ignore_label"] == 255
    assert builder.info.features["label_map"].dtype == np.uint8


def test_worlds_of_other_seeds_and_counts_have_folders_of_their_own(tmp_path):
    worlds = [ShapesWorld(**COUNTS, seed=seed, data_dir=tmp_path) for seed in (0, 1)]
    worlds.append(ShapesWorld(seed=0, num_train=4, num_val=2, data_dir=tmp_path))
    assert len({world.data_dir for world in worlds}) == 3


def test_arguments_go_with_the_builder_to_another_process(tmp_path):
    builder = pickle.loads(pickle.dumps(ShapesWorld(**COUNTS, seed=7, data_dir=tmp_path)))
    builder.download_and_prepare()
    assert pathlib.Path(builder.data_dir).parent.name == "seed_7_train_3_val_2"
    assert len(examples_of(builder, "train")) == 3


def test_prepared_data_is_loaded_by_name(tmp_path):
    prepared(tmp_path)
    rows = tfds.load("shapes_world", split="validation", data_dir=tmp_path, builder_kwargs=COUNTS)
    (first, _) = tfds.as_numpy(rows)
    assert first["image"].shape == (128, 128, 3) and first["image_id"] == b"1000000"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_train": 0}, ValueError, "num_train=0: expected 1 to 1,000,000 scenes"),
        ({"config": "seed_1"}, ValueError, r"config='seed_1': expected 'seed_0_train_1200_val"),
        ({"data_root": "raw"}, TypeError, "data_root"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        ShapesWorld(**arguments, data_dir=tmp_path)
