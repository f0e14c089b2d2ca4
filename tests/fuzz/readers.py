"""Every reader with a small valid file, how it is damaged, and what is right of what it reads."""

import dataclasses
import functools
import io
import json
import pathlib
import pickle
import shutil
import tarfile
import zipfile
from typing import Any

import jax
import numpy as np
import torch
from etils import epath
from PIL import Image
from safetensors.numpy import save_file

from input_pipeline.class_lists import parse_class_list
from input_pipeline.examples import IGNORE, Example
from input_pipeline.file_trees import open_tree
from input_pipeline.image_files import read_image, read_label_map
from input_pipeline.layouts.inert_pickle import read_inert_pickle
from input_pipeline.records.proposal_records import decode_record, encode_record
from input_pipeline.records.record_source import RecordSource
from input_pipeline.run_lengths import decode_segmentation
from launch.secrets_file import check_secrets_file
from maft_jax.config import preset
from maft_jax.convert.formats import ClipWeights, read_weights, write_weights
from maft_jax.convert.state_dict_io import open_state_dict
from maft_jax.convert.weights_source import OWN_METADATA
from maft_jax.evaluators.evaluation_counts import EvaluationCounts
from maft_jax.evaluators.results import EvaluationResult, read_result, write_results
from maft_jax.evaluators.unfinished_counts import UnfinishedCounts
from maft_jax.models.clip import ClipConfig, random_parameters
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.text.sentencepiece_tokenizer import TokenizerFile
from maft_jax.models.towers.clip_vit import VisionConfig
from maft_jax.proposals.external import ExternalProposals
from maft_jax.runtime.metric_logging import read_metrics
from maft_jax.runtime.sealed_files import (
    read_sealed,
    read_sealed_json,
    write_sealed,
    write_sealed_json,
)
from maft_jax.state.restored_run import read_run_config
from tests.fuzz.generator_readers import GENERATOR_READERS
from tests.fuzz.label_map_readers import LABEL_MAP_READERS
from tests.fuzz.modules_reader import MODULES_READER
from tests.fuzz.mutations import (
    damage,
    damage_json,
    inside_header,
    inside_metadata,
    inside_zip,
)
from tests.fuzz.reader import Make, Reader
from tests.golden_files import GOLDEN
from tests.in_memory_weights import load_state_dict, save_state_dict
from tests.record_sets import make_record, write_record_set
from tests.siglip_files import unpacked

CLIP = ClipConfig(VisionConfig(64, 1, 16, 32, 16), TextConfig(64, 1, 50, 9, 16))
FOLDERS = {"transformers": "config.json", "open_clip": "open_clip_config.json"}
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float16)}
EXAMPLE = Example("7", np.zeros((20, 30, 3), np.uint8), np.full((20, 30), IGNORE, np.int32))
RUN_LENGTHS = {"size": [20, 30], "counts": [100, 50, 450]}
ANNOTATION = {"image_id": 7, "score": 0.5, "segmentation": RUN_LENGTHS}


def file(name: str, content: bytes | str) -> Make:
    def make(folder: pathlib.Path) -> pathlib.Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def arrays(name: str) -> Make:
    def make(folder: pathlib.Path) -> pathlib.Path:
        if name.endswith(".pt"):
            torch.save({k: torch.from_numpy(v) for k, v in ARRAYS.items()}, folder / name)
        else:
            save_state_dict(ARRAYS, folder / name)
        return folder / name

    return make


def clip(name: str, format_name: str, damaged: str) -> Make:
    def make(folder: pathlib.Path) -> pathlib.Path:
        weights = ClipWeights.of(CLIP, random_parameters(CLIP), MaskingSpec(1, 48))
        write_weights(weights, folder / name, format_name)
        return folder / damaged

    return make


def golden_siglip(name: str, damaged: str) -> Make:
    return lambda folder: shutil.copytree(GOLDEN / "siglip" / name, folder / name) / damaged


def tokenized(path: pathlib.Path) -> Any:
    return TokenizerFile.open(path).vocabulary.encode(["a photo of a cat"])


def clip_without_digests(folder: pathlib.Path) -> pathlib.Path:
    """As earlier versions wrote it, of which the header is all that can be checked."""
    path = clip("c.safetensors", "openai", "c.safetensors")(folder)
    tensors, metadata = open_state_dict(path)
    own = {OWN_METADATA: metadata[OWN_METADATA]}
    save_file({name: tensor.read() for name, tensor in tensors.items()}, path, own)
    return path


def legacy_pt(folder: pathlib.Path) -> pathlib.Path:
    tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    torch.save(tensors, folder / "w.pt", _use_new_zipfile_serialization=False)
    return folder / "w.pt"


def picture(name: str, mode: str, **options) -> Make:
    content, values = io.BytesIO(), (np.arange(20 * 30 * 3) % 251).astype(np.uint8)
    pixels = values.reshape(20, 30, 3)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200 if mode == "I;16" else pixels)
    image = image if mode == "I;16" else image.convert(mode)
    image.save(content, **options)
    return file(name, content.getvalue())


def npz(folder: pathlib.Path) -> pathlib.Path:
    masks = np.zeros((2, 20, 30), bool)
    masks[0, :5] = masks[1, 7:] = True
    np.savez_compressed(folder / "7.npz", masks=masks, scores=np.array([0.5, 1]))
    return folder / "7.npz"


def png_folder(folder: pathlib.Path) -> pathlib.Path:
    (folder / "7").mkdir()
    for number in range(2):
        Image.fromarray(np.full((20, 30), 255 * number, np.uint8)).save(folder / f"7/{number}.png")
    return folder


def scores(folder: pathlib.Path) -> pathlib.Path:
    png_folder(folder)
    return file("7/scores.json", "[0.5, 0.25]")(folder)


def table_of_sam(folder: pathlib.Path) -> pathlib.Path:
    png_folder(folder)
    return file("7/metadata.csv", "id,area,predicted_iou\n0,30,0.5\n1,40,0.75\n")(folder)


def png_mask(folder: pathlib.Path) -> pathlib.Path:
    return png_folder(folder) / "7/1.png"


def propose(path: pathlib.Path) -> Any:
    folder = path if path.name == "coco.json" else next(p for p in path.parents if p.name == "fuzz")
    return ExternalProposals(str(folder))(EXAMPLE, 10)


def run(folder: pathlib.Path) -> pathlib.Path:
    config = preset("official")
    config.model.pretrained = "random:tiny"
    config.data.root = "photos"
    return file("config.json", json.dumps(config.to_dict()))(folder)


def result(name: str) -> Make:
    def make(folder: pathlib.Path) -> pathlib.Path:
        counts = np.arange(16, dtype=np.int64).reshape(4, 4)
        names, masks = ("cat", "dog", "sky"), np.array([[3, 1], [2, 2], [0, 0]])
        made = EvaluationResult("voc", "val", names, (1,), 3, counts, {"a": 1}, masks)
        write_results([made], folder)
        return folder / name

    return make


def records(pattern: str) -> Make:
    def make(folder: pathlib.Path) -> pathlib.Path:
        write_record_set(folder, [make_record(seed) for seed in range(3)])
        return next(folder.glob(pattern))

    return make


def all_records(path: pathlib.Path) -> list:
    source = RecordSource(path.parent)
    return [[*dataclasses.astuple(source[i])] for i in range(len(source))]


def sealed_json(folder: pathlib.Path) -> pathlib.Path:
    write_sealed_json(folder / "plan.json", {"costs": {"flops": 1e12}, "sizes": [1, 2], "a": None})
    return folder / "plan.json"


def sealed(folder: pathlib.Path) -> pathlib.Path:
    write_sealed(folder / "cache.npy", bytes(range(200)), b"key")
    return folder / "cache.npy"


def unfinished(path: pathlib.Path) -> UnfinishedCounts:
    return UnfinishedCounts(epath.Path(path), "voc", "key", 2)


def counts_so_far(folder: pathlib.Path) -> pathlib.Path:
    total = EvaluationCounts(2)
    total.add(np.full((3, 3), 7), 63, np.array([[3, 1], [2, 2]]))
    unfinished(folder).save(5, total)
    return folder / "voc.unfinished.npz"


def found_counts(path: pathlib.Path) -> Any:
    number, total = unfinished(path.parent).load()
    return [number, total.confusion, total.masks] if number else None


def archive(name: str) -> Make:
    files = {"a.png": b"first", "b/c.png": bytes(900), "list.txt": b"cat\ndog\n"}

    def make(folder: pathlib.Path) -> pathlib.Path:
        if name.endswith(".zip"):
            with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as packed:
                for path, content in files.items():
                    packed.writestr(path, content)
            return folder / name
        with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as packed:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                packed.addfile(info, io.BytesIO(content))
        return folder / name

    return make


def unpack(path: pathlib.Path) -> Any:
    tree = open_tree(path)
    return [tree.read(name) for name in tree.names()]


def class_list(path: pathlib.Path) -> Any:
    return parse_class_list(path.read_bytes(), str(path))


def segmentation(path: pathlib.Path) -> Any:
    try:
        return decode_segmentation({"size": [20, 30], "counts": path.read_bytes()}, (20, 30))
    except ValueError as error:  # the caller names the file: here this reader is it
        raise ValueError(f"{path}: {error}") from error


def record(path: pathlib.Path) -> Any:
    return decode_record(path.read_bytes(), str(path))


def secret_names(path: pathlib.Path) -> Any:
    path.chmod(0o600)
    return check_secrets_file(str(path))


def weights(path: pathlib.Path) -> Any:
    return jax.tree.leaves(read_weights(path).parameters())


def result_without_counts(path: pathlib.Path) -> Any:
    read = read_result(path)
    return [read.dataset, read.split, read.class_names, read.num_images, read.provenance]


def weights_folder(path: pathlib.Path) -> Any:
    return weights(path.parent)


COCO = json.dumps([ANNOTATION])
COCO_WITH_IMAGES = json.dumps(
    {
        "info": {},
        "images": [{"id": 7, "file_name": "a/7.jpg", "height": 20, "width": 30}],
        "annotations": [ANNOTATION, {**ANNOTATION, "segmentation": [[0, 0, 9, 0, 9, 9]]}],
    }
)
METRICS = "".join(json.dumps({"step": n, "loss": 0.5, "evaluation/x": None}) + "\n" for n in (1, 2))
INDEX = pickle.dumps({"index": {"filename": np.array(["a.jpg", "b.jpg"], object), "n": 3}}, 2)
SECRETS = "WANDB_API_KEY=abc\n# a comment\nHF_TOKEN=def\n"
LISTS = {
    "names": "cat\ndog\npotted plant\n",
    "tabs": "0\tcat\n1\tdog\n255\tvoid\n",
    "numbered": "0: cat\n1: dog\n",
    "several": "0:invalid_class_id\n1:cat,kitty\n2:dog\n",
    "pbtxt": "item {\n  id: 1\n  name: 'cat'\n}\nitem { name: \"dog\" id: 2 }\n",
    "table": "id,name,supercategory\n1,cat,animal\n2,dog,animal\n",
    "yaml": "nc: 2\nnames:\n  0: cat\n  1: dog\n",
    "json": '{"id2label": {"0": "cat", "1": "dog"}}',
    "colours": "# label:color_rgb:parts:actions\ncat:0,0,0::\ndog:250,0,7::a,b\n",
}

READERS = [
    Reader("safetensors", arrays("w.safetensors"), load_state_dict, checked=True),
    Reader("safetensors header", arrays("w.safetensors"), load_state_dict, inside_header, True),
    Reader("pt", arrays("w.pt"), load_state_dict, checked=True),
    Reader("pt members", arrays("w.pt"), load_state_dict, inside_zip(damage)),
    Reader("pt before 1.6", legacy_pt, load_state_dict),
    Reader("npz", arrays("w.npz"), load_state_dict, checked=True),
    Reader("npz members", arrays("w.npz"), load_state_dict, inside_zip(damage)),
    Reader(
        "clip", clip("c.safetensors", "openai", "c.safetensors"), weights, inside_header, True, 4
    ),
    Reader("clip without digests", clip_without_digests, weights, inside_header, cost=4),
    Reader("our metadata", clip_without_digests, weights, inside_metadata, cost=4),
    *(
        Reader(name, clip("c", name, f"c/{settings}"), weights_folder, damage_json, cost=4)
        for name, settings in FOLDERS.items()
    ),
    MODULES_READER,
    *GENERATOR_READERS,
    *(
        Reader(
            f"siglip, {name}", golden_siglip(name, settings), weights_folder, damage_json, cost=8
        )
        for name, settings in FOLDERS.items()
    ),
    *(
        Reader(name, functools.partial(unpacked, "tokenizer_gemma", name), tokenized)
        for name in ("tokenizer.model", "tokenizer.json")
    ),
    *(
        Reader(f"class list, {name}", file("list.txt", text), class_list)
        for name, text in LISTS.items()
    ),
    Reader("class list, json structure", file("l", LISTS["json"]), class_list, damage_json),
    Reader("png", picture("a.png", "RGB", format="png"), read_image, checked=True),
    Reader("jpeg", picture("a.jpg", "RGB", format="jpeg"), read_image),
    Reader("tiff", picture("a.tif", "RGB", format="tiff", compression="tiff_lzw"), read_image),
    Reader("bmp", picture("a.bmp", "RGB", format="bmp"), read_image),
    Reader("webp", picture("a.webp", "RGB", format="webp"), read_image),
    Reader("gif", picture("a.gif", "P", format="gif"), read_image),
    Reader("label map", picture("a.png", "L", format="png"), read_label_map, checked=True),
    Reader(
        "label map, 16 bits", picture("a.png", "I;16", format="png"), read_label_map, checked=True
    ),
    *LABEL_MAP_READERS,
    Reader("external npz", npz, propose, checked=True),
    Reader("external npz members", npz, propose, inside_zip(damage)),
    Reader("external json", file("7.json", COCO), propose, damage_json),
    Reader("external coco", file("coco.json", COCO_WITH_IMAGES), propose, damage_json),
    Reader("external coco bytes", file("coco.json", COCO_WITH_IMAGES), propose),
    Reader("external scores", scores, propose, damage_json),
    Reader("external table", table_of_sam, propose),
    Reader("external png", png_mask, propose, checked=True),
    Reader("run lengths", file("counts", "T3b1d0cNe<"), segmentation),
    Reader("run config", run, lambda path: read_run_config(path.parent), damage_json),
    Reader("metrics", file("metrics.jsonl", METRICS), lambda p: read_metrics(epath.Path(p.parent))),
    Reader("result", result("voc.json"), result_without_counts, damage_json, checked=True),
    Reader(
        "result counts",
        result("voc_confusion.npz"),
        lambda path: read_result(path.with_name("voc.json")).confusion,
        checked=True,
    ),
    Reader("sealed cache", sealed, lambda path: read_sealed(path, b"key"), checked=True),
    Reader("sealed json", sealed_json, read_sealed_json, checked=True),
    Reader("sealed json structure", sealed_json, read_sealed_json, damage_json, checked=True),
    Reader("unfinished counts", counts_so_far, found_counts, checked=True),
    Reader("records", records("*.tfrecord"), all_records, checked=True),
    Reader("records, index", records("*.idx"), all_records, checked=True),
    Reader("records, done", records("*.done.json"), all_records, checked=True),
    Reader("records, dataset", records("dataset.json"), all_records, checked=True),
    Reader("record message", file("r", encode_record(make_record(1))), record),
    Reader("zip", archive("a.zip"), unpack, checked=True),
    Reader("tar", archive("a.tar"), unpack),
    Reader("tar.gz", archive("a.tar.gz"), unpack, checked=True),
    Reader(
        "ade20k index", file("i.pkl", INDEX), lambda p: read_inert_pickle(p.read_bytes(), str(p))
    ),
    Reader("env file", file("tokens.env", SECRETS), secret_names),
]
