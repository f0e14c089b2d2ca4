"""Label maps of colours, as CVAT's SegmentationClass, Cityscapes and drawn VOC palettes are."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from input_pipeline.examples import IGNORE
from input_pipeline.folder_source import FolderSource
from maft_jax.proposals.label_agreement import check_several_classes
from maft_jax.proposals.precompute import precompute
from maft_jax.proposals.precompute_job import job_from_config
from tests.runs import small_config

CVAT = (
    "# label:color_rgb:parts:actions\n"
    "background:0,0,0::\nroad:128,64,128::\nperson:220,20,60::\nignored:224,224,192::\n"
)
BLACK, ROAD, PERSON, BORDER = (0, 0, 0), (128, 64, 128), (220, 20, 60), (224, 224, 192)


def write_data(root, *label_maps, classes=CVAT):
    """CVAT's "Segmentation mask 1.1" with images."""
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    for i, image in enumerate(label_maps):
        if not isinstance(image, Image.Image):
            image = Image.fromarray(np.array(image, np.uint8))
        Image.new("RGB", image.size, (90, 120, 150)).save(root / f"JPEGImages/p{i}.jpg")
        image.save(root / f"SegmentationClass/p{i}.png")
    (root / "labelmap.txt").write_text(classes)
    return root


def open_data(root):
    return FolderSource(root, "JPEGImages", "SegmentationClass", "labelmap.txt")


def test_colours_become_classes_and_ignored_ones_are_ignored(tmp_path):
    root = write_data(tmp_path / "data", [[BLACK, ROAD, BORDER], [PERSON, PERSON, ROAD]])
    source = open_data(root)
    assert source.class_names == ("background", "road", "person")
    example = source[0]
    assert example.label_map.dtype == np.int32
    assert example.label_map.tolist() == [[0, 1, IGNORE], [2, 2, 1]]


def test_archives_are_read_as_folders_are(tmp_path):
    root = write_data(tmp_path / "data", [[BLACK, ROAD], [PERSON, ROAD]])
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        for file in root.rglob("*"):
            archive.write(file, f"task/{file.relative_to(root)}")
    assert open_data(tmp_path / "task.zip")[0].label_map.tolist() == [[0, 1], [2, 1]]


def test_a_palette_is_looked_up_where_the_list_has_colours_alone(tmp_path):
    colors = [[BLACK, ROAD], [PERSON, ROAD]]
    palette = Image.fromarray(np.array(colors, np.uint8)).quantize(4)
    assert palette.mode == "P"
    grey = Image.fromarray(np.zeros((2, 2), np.uint8))
    opaque = Image.fromarray(np.array(colors, np.uint8)).convert("RGBA")
    source = open_data(write_data(tmp_path / "data", palette, grey, opaque))
    assert source[0].label_map.tolist() == [[0, 1], [2, 1]]
    assert source[1].label_map.tolist() == [[0, 0], [0, 0]]
    assert source[2].label_map.tolist() == [[0, 1], [2, 1]]


def test_a_list_of_values_and_colours_reads_either_kind_of_label_map(tmp_path):
    table = "id,name,r,g,b\n7,road,128,64,128\n24,person,220,20,60\n255,void,0,0,0\n"
    drawn = write_data(tmp_path / "drawn", [[BLACK, ROAD], [PERSON, ROAD]], classes=table)
    indices = Image.fromarray(np.array([[255, 7], [24, 7]], np.uint8)).convert("P")
    indexed = write_data(tmp_path / "indexed", indices, classes=table)
    for root in (drawn, indexed):
        source = open_data(root)
        assert source.class_names == ("road", "person")
        assert source[0].label_map.tolist() == [[IGNORE, 0], [1, 0]]


def test_palette_images_stay_label_maps_of_indices_for_lists_without_colours(tmp_path):
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
    root = write_data(tmp_path / "data", palette, classes="background\nroad\nperson\n")
    assert open_data(root)[0].label_map.tolist() == [[0, 1], [2, 1]]


def test_colours_of_no_class_are_counted_over_the_set_before_anything_is_written(tmp_path):
    root = write_data(
        tmp_path / "data",
        [[BLACK, ROAD], [PERSON, ROAD]],
        [[BLACK, (1, 2, 3)], [(1, 2, 3), ROAD]],
        [[(1, 2, 3), (9, 9, 9)], [PERSON, ROAD]],
    )
    with pytest.raises(ValueError) as refusal:
        open_data(root)[1]
    assert str(refusal.value).startswith(
        f"{root}/SegmentationClass/p1.png: the class list (3 classes) has no colour 1,2,3; 2 "
        "of 4 pixels have them; add them to the list"
    )
    settings = {
        "data.root": str(root),
        "data.records": str(tmp_path / "records"),
        "data.images": "JPEGImages",
        "data.annotations": "SegmentationClass",
        "data.classes": "labelmap.txt",
    }
    with pytest.raises(ValueError) as refusal:
        precompute(job_from_config(small_config(settings)), num_workers=1)
    lines = [line.strip() for line in str(refusal.value).splitlines()]
    first = f"the first of them {root}/SegmentationClass"
    assert lines[-2:] == [
        f"colour 1,2,3 has no class: 3 pixels of 2 label maps, {first}/p1.png",
        f"colour 9,9,9 has no class: 1 pixels of 1 label maps, {first}/p2.png",
    ]


def test_label_maps_of_one_colour_are_refused_by_colour(tmp_path):
    root = write_data(tmp_path / "data", [[ROAD, BORDER], [ROAD, ROAD]])
    with pytest.raises(ValueError) as refusal:
        check_several_classes(open_data(root))
    assert "every pixel is colour 128,64,128 (road, 75.0 %)" in str(refusal.value)
    assert "or colour 224,224,192 (ignored, 25.0 %). Colours that" in str(refusal.value)


def test_transparent_pixels_are_refused(tmp_path):
    image = Image.fromarray(np.array([[[*ROAD, 255], [*ROAD, 7]]], np.uint8))
    with pytest.raises(ValueError, match=r"p0\.png: .*1 of 2 pixels are transparent"):
        open_data(write_data(tmp_path / "data", image))[0]


def test_signature_follows_the_colours(tmp_path):
    root = write_data(tmp_path / "data", [[BLACK, ROAD], [PERSON, ROAD]])
    before = open_data(root).signature(0)
    assert open_data(root).signature(0) == before
    (root / "labelmap.txt").write_text(CVAT.replace("128,64,128", "128,64,129"))
    assert open_data(root).signature(0) != before


def test_voc_palette_drawn_as_rgb_gives_the_indices_of_the_palette(tmp_path):
    """The palette by the bits of its indices, as VOC's development kit has it."""

    def color(index):
        bits = [(index >> (3 * i) + channel & 1) << 7 - i for channel in range(3) for i in range(8)]
        return tuple(sum(bits[start : start + 8]) for start in (0, 8, 16))

    names = ["background", *(f"class {chr(97 + i)}" for i in range(20))]
    lines = [f"{name}:{','.join(map(str, color(i)))}::" for i, name in enumerate(names)]
    indices = np.arange(21).reshape(3, 7)
    drawn = np.array([color(i) for i in indices.ravel()], np.uint8).reshape(3, 7, 3)
    assert color(15) == (192, 128, 128)  # person
    source = open_data(write_data(tmp_path / "data", drawn, classes="\n".join(lines)))
    np.testing.assert_array_equal(source[0].label_map, indices)
