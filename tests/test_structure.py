"""Who may import whom, and sizes and names of files: what would otherwise decay unnoticed."""

import ast
import functools
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent


def floors() -> dict[int, list[str]]:
    """Modules by floor, as docs/architecture.md has them; a name stands for all under it."""
    page = (REPOSITORY / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)
    return {int(floor): re.findall(r"`([\w.]+)`", names) for floor, names in rows}


LEVELS = {level: [f"maft_jax.{name}" for name in names] for level, names in floors().items()}
LOWEST_LEVEL_THAT_READS_DATA = 5
FACTS = tuple(
    f"input_pipeline.{name}"
    for name in (
        "dataset_specs",
        "class_lists",
        "limits",
        "bounded_unpickler",
        "zip_directory",
        "write_errors",
    )
)
"""What the configuration knows of data sets, and what all files need: no data."""

CONFIG_FILES = "configs/*.py"
TORCH_FILES = [
    "maft_jax/convert/state_dict_io.py",
    "maft_jax/convert/library_embeddings.py",
    "maft_jax/convert/timm_embeddings.py",
    "maft_jax/convert/siglip_embeddings.py",
    "maft_jax/convert/class_token_embeddings.py",
    "maft_jax/proposals/transformers_models.py",
    "maft_jax/benchmarks/torch_step.py",
    "maft_jax/benchmarks/torch_inference.py",
    "maft_jax/benchmarks/torch_device.py",
    "maft_jax/benchmarks/torch_alone.py",
]
RENDITION = "maft_jax.benchmarks.pytorch"
RENDITION_FILES = "maft_jax/benchmarks/pytorch/*.py"
ONLY_IN = {
    "tensorflow": [
        "input_pipeline/builders/*.py",
        "input_pipeline/numpy_dataset.py",
        "maft_jax/export/tensorflow_programs.py",
    ],
    "onnx": ["maft_jax/export/onnx_*.py"],
    "onnxruntime": ["maft_jax/export/onnx_program.py"],
    "tensorflow_datasets": ["input_pipeline/builders/*.py"],
    "torch": [*TORCH_FILES, RENDITION_FILES],
    "transformers": TORCH_FILES,
    "ml_collections": ["maft_jax/config/__init__.py", "maft_jax/cli/config_flags.py", CONFIG_FILES],
    "clu": ["maft_jax/runtime/metric_logging.py"],
    "orbax": ["maft_jax/state/checkpointing.py"],
    "gradio": ["maft_jax/web_page/page.py"],
    "wandb": ["maft_jax/tracking/wandb_run.py"],
    "mlflow": ["maft_jax/tracking/mlflow_run.py"],
    "huggingface_hub": ["maft_jax/hub/hugging_face.py", "maft_jax/publishing/upload.py"],
}

SOURCES = sorted(
    path
    for folder in ("maft_jax", "input_pipeline", "configs")
    for path in (REPOSITORY / folder).rglob("*.py")
)
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def relative(path: pathlib.Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def module_name(path: pathlib.Path) -> str:
    """maft_jax.models.clip of maft_jax/models/clip.py; a package's own file ends in __init__."""
    return relative(path).removesuffix(".py").replace("/", ".")


MODULES = {module_name(path): path for path in SOURCES}


def imported_names(tree: ast.AST, module: str) -> list[tuple[str, bool]]:
    """(absolute dotted name, whether at module level) of every import, wherever it stands."""
    top = {id(node) for node in ast.iter_child_nodes(tree)}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        found += [(name, id(node) in top) for name in names]
    return found


@functools.cache
def imports_of(path: pathlib.Path) -> list[tuple[str, bool]]:
    return imported_names(ast.parse(path.read_text()), module_name(path))


def our_module(name: str) -> str | None:
    """The module of ours that an imported name leads to, or None for other people's."""
    if name.startswith("maft_jax.configs"):  # as which configs/ is installed
        return "maft_jax.configs"
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for candidate in (prefix, f"{prefix}.__init__"):
            if candidate in MODULES:
                return candidate
    return None


def level_of(module: str) -> int | None:
    for level, names in LEVELS.items():
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return level
    return None


def test_imports_are_found_wherever_they_stand():
    source = """
import a.b
from c.d import e, f as g
from . import h
from ..i import j
def function():
    if True:
        import k
"""
    found = imported_names(ast.parse(source), "p.q.r")
    expected = {"a.b": True, "c.d.e": True, "c.d.f": True, "p.q.h": True, "p.i.j": True, "k": False}
    assert dict(found) == expected


@functools.cache
def names_in(module: str) -> set[str]:
    """What its file defines, imports or lists in __all__, outside of functions and classes."""
    found, ahead = set(), [ast.parse(MODULES[module].read_text())]
    while ahead:
        for node in ast.iter_child_nodes(ahead.pop()):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            else:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                    found |= set(ast.literal_eval(node.value))
                ahead.append(node)
    return found


def test_what_is_imported_of_ours_is_there():
    """Also inside functions, where nothing fails until they are called, and in tests."""
    problems = []
    for path in [*SOURCES, *TESTS]:
        for name, _ in imports_of(path):
            module, _, last = name.rpartition(".")
            module = module if module in MODULES else f"{module}.__init__"
            if module in MODULES and our_module(name) == module and last not in names_in(module):
                problems.append(f"{relative(path)} imports {name}, which is not there")
    assert not problems, "\n".join(problems)


def test_modules_import_their_own_level_or_lower_ones():
    ours = [module for module in MODULES if module.startswith("maft_jax.")]
    homeless = [module for module in ours if level_of(module) is None]
    assert not homeless, (
        f"{homeless}: no floor; add them to the table of docs/architecture.md, as low as their "
        "imports allow"
    )
    problems = []
    for module in ours:
        level = level_of(module)
        for name, _ in imports_of(MODULES[module]):
            target = our_module(name)
            if target is None:
                continue
            data = target.startswith("input_pipeline.") and target not in FACTS
            lowest = LOWEST_LEVEL_THAT_READS_DATA if data else level_of(target) or 0
            if level < lowest:
                problems.append(f"{module} (level {level}) imports {name} (level {lowest})")
    assert not problems, "\n".join(problems)


def test_towers_are_known_to_models_and_weight_formats_alone():
    """All else goes by the protocols of models/encoder.py."""
    towers = ("maft_jax.models.towers", "maft_jax.models.text.clip_text")
    problems = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name, _ in imports_of(path)
        if name.startswith(towers)
        and module.split(".")[:2] not in (["maft_jax", "models"], ["maft_jax", "convert"])
    ]
    assert not problems, "\n".join(problems)


def test_input_pipeline_imports_nothing_of_maft_jax():
    for module in (m for m in MODULES if m.startswith("input_pipeline.")):
        ours = {our_module(name) for name, _ in imports_of(MODULES[module])} - {None}
        assert all(target.startswith("input_pipeline.") for target in ours), (module, ours)


def test_configurations_import_only_the_configuration():
    for module in (m for m in MODULES if m.startswith("configs.")):
        ours = {our_module(name) for name, _ in imports_of(MODULES[module])} - {None}
        assert ours <= {"maft_jax.config.__init__"}, module


def test_no_modules_import_each_other_in_a_circle():
    edges = {
        module: {our_module(name) for name, _ in imports_of(path)} - {None, module}
        for module, path in MODULES.items()
    }
    remaining = set(edges)
    while leaves := {m for m in remaining if not edges[m] & remaining}:
        remaining -= leaves
    assert not remaining, f"these import each other: {sorted(remaining)}"


@pytest.mark.parametrize("package", ONLY_IN)
def test_package_is_known_to_its_place_alone(package):
    allowed = {path for pattern in ONLY_IN[package] for path in REPOSITORY.glob(pattern)}
    for path in SOURCES:
        for name, _ in imports_of(path):
            if name.split(".")[0] == package:
                assert path in allowed, f"{relative(path)} imports {name}"


@pytest.mark.parametrize("path", TORCH_FILES)
def test_torch_is_imported_inside_functions_alone(path):
    imports = imports_of(REPOSITORY / path)
    at_top = [top for name, top in imports if name.split(".")[0] in ("torch", "transformers")]
    assert at_top and not any(at_top)


def test_the_rendition_in_pytorch_is_loaded_by_functions_alone():
    """Its modules import torch at once, so others import them when they are needed."""
    found = []
    for module in (m for m in MODULES if not m.startswith(f"{RENDITION}.")):
        found += [top for name, top in imports_of(MODULES[module]) if name.startswith(RENDITION)]
    assert found and not any(found)


def test_the_rendition_in_pytorch_knows_nothing_else_of_ours():
    renditions = [m for m in MODULES if m.startswith(f"{RENDITION}.")]
    assert len(renditions) == 4
    for module in renditions:
        ours = {our_module(name) for name, _ in imports_of(MODULES[module])} - {None}
        assert ours <= set(renditions), module


def test_gradio_is_an_extra_that_is_imported_inside_functions_alone():
    (path,) = [REPOSITORY / path for path in ONLY_IN["gradio"]]
    at_top = [top for name, top in imports_of(path) if name.split(".")[0] == "gradio"]
    assert at_top and not any(at_top)


def test_configuration_loads_in_an_instant():
    """Neither it nor what it imports of ours, all the way down, loads an array library."""
    seen, ahead = set(), ["maft_jax.config.__init__", *FACTS]
    while ahead:
        module = ahead.pop()
        seen.add(module)
        for name, _ in imports_of(MODULES[module]):
            assert name.split(".")[0] not in {"jax", "flax", "optax", "numpy", "tensorflow"}, module
            target = our_module(name)
            if target not in (None, "maft_jax.__init__") and target not in seen:
                ahead.append(target)
    assert {"maft_jax.config.sections", "input_pipeline.dataset_specs"} <= seen


def test_files_are_small_and_private_parts_of_jax_are_left_alone():
    problems = []
    for path in [*SOURCES, *TESTS]:
        lines = len(path.read_text().splitlines())
        if lines > 400:
            problems.append(f"{relative(path)} has {lines} lines; at most 400")
        if path.stem in {"utils", "util", "common", "misc", "helpers"}:
            problems.append(f"{relative(path)}: a name that says nothing")
        private = [name for name, _ in imports_of(path) if name.startswith("jax._src")]
        problems += [f"{relative(path)} imports {name}" for name in private]
    assert not problems, "\n".join(problems)


def test_modules_say_what_they_are_and_their_functions_fit_a_screen():
    problems = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            problems.append(f"{relative(path)} has no docstring")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > 80:
                    problems.append(f"{relative(path)}: {node.name} has {lines} lines; at most 80")
    assert not problems, "\n".join(problems)


def test_every_package_has_an_init_file():
    folders = {path.parent for path in SOURCES if path.parent.name != "configs"}
    for folder in folders:
        assert (folder / "__init__.py").is_file(), f"{relative(folder)} has no __init__.py"


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("maft_jax/main.py", 100),
        ("maft_jax/training/train_step.py", 150),
        ("maft_jax/training/train_loop.py", 250),
    ],
)
def test_the_files_to_read_first_stay_short(path, limit):
    assert len((REPOSITORY / path).read_text().splitlines()) <= limit


def test_readme_has_no_placeholders():
    assert not re.findall("@[A-Z]+@", (REPOSITORY / "README.md").read_text())
