"""Segments images with classes in your own words.

    python -m maft_jax.cli.predict --weights=tuned.safetensors --image=photo.jpg \\
        --classes="cat, sofa, lamp" --out=out

Writes for each image NAME_overlay.png (colours, names, legend), NAME_labels.png (index of the class
of each pixel, 255 = none) and NAME.json (areas, scores, boxes, and where they come from). With
--task=panoptic or --task=instance it is objects that are found: NAME.json has the mask of each, and
NAME_panoptic.png the segments of a panoptic result. An image that cannot be read does not stop the
others; all of those are listed at the end. docs/predict.md has recipes.

    ... --image=photos --image='more/**/*.jpg' --classes=coco_stuff_171
    ... --classes='"salt, pepper", cat' --background="wall, floor, sky"
    ... --classes_file=names.txt --proposals=masks
    ... --classes="cat, sofa, wall" --things="cat, sofa" --task=panoptic
    ... --weights=maft.pth --generator=freeseg          # the official system, from one checkpoint
    ... --weights=fcclip.pth --generator=fcclip        # FC-CLIP or MAFT+ as a whole

Exit codes: 0 done, 1 some images failed, 2 wrong input, 130 and 143 interrupted.
"""

from absl import flags

from maft_jax.cli import command_line, fcclip_prediction, generator_flags, task_flags
from maft_jax.config.fields import expand_path
from maft_jax.config.prompts import PROMPT_TEMPLATES
from maft_jax.runtime.console import log_to_stderr, run_and_report

_WEIGHTS = command_line.define_path(
    "weights",
    None,
    "CLIP of any known format, tuned or not, the workdir of a training run, or a name that is "
    "downloaded once: hf:OWNER/NAME, openai:ViT-B/16",
)
_stated = command_line.define_stated_flags("the weights")
_IMAGE = command_line.define_paths(
    "image", "image, folder or quoted pattern; may be given several times"
)
_OUT = command_line.define_path("out", "out", "folder to write to")
_CLASSES = flags.DEFINE_string(
    "classes", None, 'names between commas ("quotes" keep a comma), or a built-in list\'s name'
)
_CLASSES_FILE = command_line.define_path("classes_file", None, "file with a name a line")
_BACKGROUND = flags.DEFINE_string(
    "background", "", "names of what is none of the classes; their pixels stay without a class"
)
_TEMPLATE = flags.DEFINE_multi_string(
    "template",
    [],
    f"prompt with {{}} for the name, may be given several times; default: {len(PROMPT_TEMPLATES)}",
)
_generator = generator_flags.define(
    ["superpixels", "external", "transformers", "mask2former", "maskformer", "freeseg", "fcclip"],
    "superpixels, external if --proposals is given",
    "external: masks made elsewhere; of the other generators: their weights, of freeseg by default "
    "those of --weights",
    _WEIGHTS,
)
_NUM_PROPOSALS = flags.DEFINE_integer(
    "num_proposals", 100, "most proposals of an image", lower_bound=1
)
_masking = command_line.define_masking_flags()
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype",
    "auto",
    ["auto", "bfloat16", "float32"],
    "of matrix products; auto = bfloat16, on a CPU float32",
)
_SCALES = flags.DEFINE_list(
    "scales", ["1"], "test-time augmentation: sizes at which CLIP reads, times image_size"
)
_FLIP = flags.DEFINE_bool("flip", False, "test-time augmentation: also read the mirror image")
_OPACITY = flags.DEFINE_float(
    "opacity", 0.6, "of the overlay's colours", lower_bound=0, upper_bound=1
)
_PICTURE_SIZE = flags.DEFINE_integer(
    "picture_size", 0, "pixels of the overlay's long side; 0 = as the image", lower_bound=0
)
_PICTURE_FORMAT = flags.DEFINE_enum("picture_format", "png", ["png", "jpg"], "of the overlay")
_CACHE_DIR = command_line.define_path(
    "cache_dir", "", "for text embeddings; empty = ~/.cache/maft_jax"
)


class ImagesFailed(Exception):
    """Some images could not be segmented."""

    exit_code = 1


def main(places: list[str]) -> int:
    """Segments, and returns the exit code."""
    log_to_stderr()
    return run_and_report(lambda: _predict(places))


def _predict(places: list[str]) -> None:
    # Imported late: --help and wrong flags answer at once.
    from etils import epath

    from maft_jax.inference.files import find_images, predict_images
    from maft_jax.runtime.workdir import make_writable

    class_names, background, synonyms = _vocabulary()
    images, missing = find_images(places)
    if not images:
        raise ValueError("\n".join(missing))
    make_writable(epath.Path(_OUT.value), "--out")
    if _CACHE_DIR.value:
        make_writable(epath.Path(_CACHE_DIR.value), "--cache_dir")
    segmenter, provenance = _load(class_names, background, synonyms)
    rules = segmenter.rules if _is_fcclip() else "maft_plus"
    segment, of_task = task_flags.make_segment(segmenter, _things_of_list, rules)
    provenance["settings"] |= of_task
    failures = predict_images(
        segment,
        images,
        _OUT.value,
        provenance,
        opacity=_OPACITY.value,
        long_side=_PICTURE_SIZE.value or None,
        picture_format=_PICTURE_FORMAT.value,
    )
    print(f"{len(images) - len(failures)} of {len(images)} images segmented, see {_OUT.value}")
    if problems := [*missing, *failures]:
        raise ImagesFailed("\n  ".join([f"{len(problems)} failed:", *problems]))


def _vocabulary() -> tuple[tuple[str, ...], tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Names of classes and of the background, and further names of some classes."""
    from maft_jax.inference.vocabulary import check_apart, parse_names, read_names, read_names_file

    if _CLASSES_FILE.value is None:
        names, synonyms = read_names(_CLASSES.value, "--classes"), {}
    else:
        names, synonyms = read_names_file(_CLASSES_FILE.value, "--classes_file")
    background = parse_names(_BACKGROUND.value, "--background") if _BACKGROUND.value else ()
    check_apart(names, background, synonyms)
    return names, background, synonyms


def _things_of_list() -> frozenset[int] | None:
    """Indices of the class list's things, if it says which they are."""
    from input_pipeline.class_lists import load_class_list
    from maft_jax.inference.vocabulary import things_of_list

    if _CLASSES_FILE.value is None:
        return things_of_list(_CLASSES.value)
    things = load_class_list(_CLASSES_FILE.value, ignore_labels=()).things
    return None if things is None else frozenset(things)


def _load(class_names: tuple[str, ...], background: tuple[str, ...], synonyms: dict):
    """The segmenter, and what the JSON files say of how it was made."""
    import maft_jax
    from maft_jax.config.sections import DataConfig
    from maft_jax.hub.local_files import pinned
    from maft_jax.inference.segmentation import ImageSegmenter
    from maft_jax.models.encoder_setup import compute_dtype
    from maft_jax.proposals.precompute_job import cache_dir
    from maft_jax.runtime.tree_rules import fingerprint
    from maft_jax.runtime.versions import versions

    templates = tuple(_TEMPLATE.value) or PROMPT_TEMPLATES
    cache = cache_dir(DataConfig(cache_dir=_CACHE_DIR.value))
    if _is_fcclip():
        vocabulary = class_names, background, synonyms, templates
        return fcclip_prediction.load(_WEIGHTS.value, *vocabulary, _COMPUTE_DTYPE.value, cache)
    generator = _generator.make((*class_names, *background))
    scales = _numbers(_SCALES.value)
    dtype = compute_dtype(_COMPUTE_DTYPE.value).name
    clip = maft_jax.load(_WEIGHTS.value, compute_dtype=dtype, **_masking(), **_stated())
    segmenter = ImageSegmenter(
        clip,
        class_names,
        background=background,
        synonyms=synonyms,
        templates=templates,
        generator=generator,
        num_proposals=_NUM_PROPOSALS.value,
        scales=scales,
        flip=_FLIP.value,
        cache_dir=cache,
    )
    provenance = {
        "weights": {
            "path": pinned(_WEIGHTS.value),
            "fingerprint": fingerprint(clip.parameters),
            **({"modules": clip.modules.describe()} if clip.modules else {}),
        },
        "proposals": {
            "generator": generator.name,
            "path": _generator.path,
            "fingerprint": generator.fingerprint,
            "most": _NUM_PROPOSALS.value,
        },
        "settings": {
            "templates": list(templates),
            **({"synonyms": synonyms} if synonyms else {}),
            "mask_start_layer": clip.mask_start_layer,
            "image_size": clip.image_size,
            "image_aspect": clip.image_aspect,
            "mask_pooling": clip.mask_pooling,
            "mask_rule": clip.mask_rule,
            "class_token": clip.class_token,
            "compute_dtype": clip.compute_dtype,
            "scales": list(scales),
            "flip": _FLIP.value,
            "opacity": _OPACITY.value,
        },
        "versions": versions(),
    }
    return segmenter, provenance


def _is_fcclip() -> bool:
    return _generator.chosen.value == fcclip_prediction.NAME


def _numbers(texts: list[str]) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in texts)
    except ValueError as error:
        raise ValueError(f"--scales: expected numbers with commas between: {error}") from None


def check_arguments(arguments: list[str]) -> list[str]:
    """Where the images are, by --image and without it.

    Raises:
        ValueError: weights, images or classes are not given, or flags that would be ignored.
    """
    places = [*map(expand_path, arguments), *_IMAGE.value]
    if _WEIGHTS.value is None:
        raise ValueError("--weights: expected CLIP weights, such as --weights=ViT-B-16.pt")
    if not places:
        raise ValueError("--image: expected an image, a folder or a pattern")
    if (_CLASSES.value is None) == (_CLASSES_FILE.value is None):
        raise ValueError(
            'expected either --classes="cat, sofa" or --classes_file=names.txt; --help tells more'
        )
    fcclip_prediction.check_flags(_is_fcclip(), (*_masking(), *_stated()))
    task_flags.check_flags()
    return places


def run() -> None:
    """Parses the command line and exits with main's code."""
    command_line.run(main, check_arguments)


if __name__ == "__main__":
    run()
