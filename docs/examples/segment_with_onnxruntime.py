"""Names the squares of a picture; needs onnxruntime, numpy and pillow, nothing else.

    python segment_with_onnxruntime.py exported photo.jpg labels.png

Before, once: python -m maft_jax.cli.export_program WEIGHTS exported --format=onnx --classes="a, b"
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, picture, result = map(pathlib.Path, sys.argv[1:])
settings = json.loads((folder / "export.json").read_text())
encoder = onnxruntime.InferenceSession(folder / "image_encoder.onnx")
labeller = onnxruntime.InferenceSession(folder / "label_maps.onnx")

image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
side = settings["image_size"]
pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))

# A mask for each square of a grid. Masks of a network that knows objects make better pictures.
cells, mask_side = 8, settings["mask_size"]
cell = np.arange(mask_side) * cells // mask_side
squares = np.arange(cells * cells)[:, None, None]
masks = (cell[:, None] * cells + cell == squares).astype(np.float32)

inputs = {"images": pixels[None], "masks": masks[None]}
[probabilities] = encoder.run(["probabilities"], inputs)
inputs = {"probabilities": probabilities, "masks": masks[None]}
[labels] = labeller.run(["label_map"], inputs)  # [1, height, width], -1 = none

for number, name in enumerate(settings["classes"]):
    print(f"{name}: {(labels == number).mean():.1%}")
kind = np.uint8 if len(settings["classes"]) < 256 else np.uint16
labels = Image.fromarray(labels[0].astype(kind))  # 255, or of 16 bits 65535, = none
labels.resize(image.size, Image.Resampling.NEAREST).save(result)
