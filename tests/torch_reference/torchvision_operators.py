"""Lets `import torchvision` succeed beside a PyTorch that it was not built for.

PyPI's torchvision is built for CUDA. Beside a CPU-only PyTorch its compiled operators do not load,
and the import fails with "operator torchvision::nms does not exist", for it registers how two of
them infer shapes. open_clip needs torchvision for image transforms alone, transformers imports it
where it is found, and nothing that is tested calls an operator of it: so the names are declared.
"""

import functools
import importlib.util
import pathlib

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_KEPT = []  # a Library takes its declarations back when it is collected


@functools.cache
def declare_missing_operators() -> None:
    """Declares what torchvision's import needs; to be called before it.

    Does nothing where torchvision is absent or its own operators load.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None:
        return
    import torch

    try:
        for file in pathlib.Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(file)
    except OSError:  # a shared library of CUDA, or of another PyTorch, is missing
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _KEPT.append(library)
