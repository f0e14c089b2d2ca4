"""What AutoProcessor and the pipelines of transformers need beside a CLIP: pixels and tokens."""

import json

from maft_jax.models.clip import ClipConfig
from maft_jax.models.preprocess import UNIT_MEAN, UNIT_STD
from maft_jax.models.text.tokenizer import merges_and_vocabulary

_START, _END = "<|startoftext|>", "<|endoftext|>"
_BILINEAR, _BICUBIC = 2, 3


def processor_files(config: ClipConfig) -> dict[str, str]:
    """{name: text} of preprocessor_config.json and, if the text tower is CLIP's, its tokenizer."""
    files = {"preprocessor_config.json": _json(_pixels(config.vision.image_size))}
    if config.text is None:
        return files
    merges, vocabulary = merges_and_vocabulary((_START, _END))
    if len(vocabulary) != config.text.vocab_size:
        return files  # tokens of another tokenizer, which these weights do not tell
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "processor_class": "CLIPProcessor",
        "model_max_length": config.text.context_length,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    return files | {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges), ""]),
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(special),
    }


def siglip_processor_files(config: ClipConfig) -> dict[str, str]:
    """The same beside a SiglipModel, whose tokenizer's own file is written elsewhere."""
    size = config.vision.image_size
    gemma = config.text is not None and config.text.has_gemma_vocabulary
    pixels = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": _BILINEAR if gemma else _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    files = {"preprocessor_config.json": _json(pixels)}
    file = config.text and config.text.tokenizer
    if file is None or (file.path.endswith(".json") and not gemma):
        return files  # SiglipTokenizer reads a spiece.model alone
    vocabulary = file.vocabulary
    tokens = {
        "tokenizer_class": "Siglip2Tokenizer" if gemma else "SiglipTokenizer",
        "processor_class": "SiglipProcessor",
        "model_max_length": config.text.context_length,
        "do_lower_case": True,
        "padding_side": "right",
        "add_bos_token": False,
        "add_eos_token": True,
        "eos_token": vocabulary.piece(vocabulary.end),
        "unk_token": vocabulary.piece(vocabulary.unknown),
        "pad_token": vocabulary.piece(config.text.padding),
    }
    return files | {"tokenizer_config.json": _json(tokens)}


def _pixels(size: int) -> dict:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(UNIT_MEAN),
        "image_std": list(UNIT_STD),
    }


def _json(value) -> str:
    return json.dumps(value, indent=2) + "\n"
