"""Eight fake CPU devices, exact matrix products, and a compilation cache for the whole suite."""

import collections
import ctypes
import functools
import gc
import logging
import os
import pathlib
import resource
import signal
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # of the workers: many threads, few allocations

import jax
import numpy as np
import pytest

from maft_jax.runtime.absent_keras import leave_keras_out
from tests.torch_reference.torchvision_operators import declare_missing_operators
from tests.warm_processes import WARM

# Test files and packages are compiled once for all of the many processes that tests start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# PyTorch for CUDA brings triton, which ends a process that has loaded TensorFlow; no test needs it.
sys.modules.setdefault("triton", None)
leave_keras_out()  # as commands do

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update(
    "jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".jax_cache")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # two workers, and commands

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Under nohup or in the background, where what tests start would not hear their Ctrl-C either.
    signal.signal(signal.SIGINT, signal.default_int_handler)


_LONGEST = {
    *("test_many_hosts.py", "test_generator_training.py", "test_interruptions.py"),
    *("test_plan_command.py", "test_signals.py", "test_flash_on_tpus.py", "test_clip_training.py"),
    *("test_fcclip_system.py", "test_train_loop.py", "test_notebook.py"),
}
"""Files of few tests that take minutes, which would keep one worker busy alone at the end."""


def pytest_addoption(parser):
    parser.addoption(
        "--begin-until",
        type=float,
        metavar="SECONDS",
        help="since the epoch: tests that have not begun by then are skipped, which the end says",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """A worker takes the next file when it is done with one: the longest first, then large ones."""
    tests = collections.Counter(item.path.name for item in items)
    items.sort(key=lambda item: (item.path.name not in _LONGEST, -tests[item.path.name]))


def pytest_runtest_setup(item):
    until = item.config.option.begin_until
    if until is not None and time.time() > until:
        pytest.skip("out of time: --begin-until has passed")


def pytest_configure(config):
    """Default and slow tests compile in half the time, without optimisations of LLVM and XLA.

    What a program computes stays. `pytest -m ""` compiles as users do, and so do the tests of GPU
    programs, whose memory is looked at. Commands that tests start inherit it.
    """
    if config.option.markexpr == "slow" and sys.platform == "linux":
        os.environ[WARM] = "1"
    if config.option.markexpr not in ("", "cuda"):
        flags = [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
        # Weights that a test's function closes over would be computed with while it is compiled.
        flags.append("--xla_disable_hlo_passes=constant_folding")
        # Parts of a program that are compiled side by side cost more, and both cores have work.
        flags.append("--xla_cpu_parallel_codegen_split_count=1")
        if jax.__version_info__ < (0, 11):  # later ones end at once over a flag that is no more
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join(flags).strip()


@pytest.fixture(scope="module")
def steps_compiled_once():
    """Runs of a file whose settings give the same train step share its compiled program.

    A step is known by its objective, its optimiser's settings, its mesh and its arguments' shapes.
    """
    from maft_jax.state import optimizer  # not before jaxtyping's hook is there
    from maft_jax.training import train_step

    make_optimizer, make_train_step = optimizer.make_optimizer, train_step.make_train_step
    made: dict = {}

    def make_once(objective, tx, mesh, state, pretrained):
        leaves, structure = jax.tree.flatten((state, pretrained))
        shapes = tuple((np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves)
        key = (objective, tx, mesh, structure, shapes)
        if key not in made:
            made[key] = make_train_step(objective, tx, mesh, state, pretrained)
        return made[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(optimizer, "make_optimizer", functools.cache(make_optimizer))
        patched.setattr(train_step, "make_train_step", make_once)
        yield


@pytest.fixture(scope="module")
def summaries_drawn_once():
    """Records of a file that hold the same have their picture drawn for the first of them."""
    from maft_jax.proposals import precompute_summary

    draw_summary, drawn = precompute_summary.draw_summary, {}

    def draw_once(summary):
        key = repr((summary.class_names, summary.to_json()))
        if key not in drawn:
            drawn[key] = draw_summary(summary)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(precompute_summary, "draw_summary", draw_once)
        yield


_MOST_KEPT = 100_000_000
"""Bytes by which a process may grow until compiled programs are forgotten between files."""


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """What a command sets up in the process of its test is undone."""
    root, *packages = (logging.getLogger(name) for name in (None, "maft_jax", "input_pipeline"))
    level, before = root.level, [(one.level, one.handlers, one.propagate) for one in packages]
    yield
    root.setLevel(level)
    for package, (level, handlers, propagate) in zip(packages, before, strict=True):
        package.setLevel(level)
        package.handlers, package.propagate = handlers, propagate


def pytest_sessionstart(session):
    """Before anything imports transformers, which imports torchvision; of several, workers do."""
    is_worker = hasattr(session.config, "workerinput")
    if is_worker or not getattr(session.config.option, "numprocesses", None):
        declare_missing_operators()


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)  # tracing makes much that lives on: looking through it takes 7 %


@pytest.fixture(scope="session")
def memory_kept() -> dict[str, int]:
    """Bytes of this process when it last forgot what it had compiled."""
    return {"bytes": _resident_bytes()}


@pytest.fixture(autouse=True, scope="module")
def give_memory_back(memory_kept):
    """Compiled programs are of some use to the next files, and the C library keeps pages.

    What a file leaves behind stays (modules above all), so that nobody looks through it again.
    """
    yield
    forgets = _resident_bytes() > memory_kept["bytes"] + _MOST_KEPT
    if forgets:
        jax.clear_caches()
    gc.collect()
    gc.freeze()
    if forgets:
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        memory_kept["bytes"] = _resident_bytes()


def _resident_bytes() -> int:
    """Of this process now; on other systems than Linux the most that it ever had."""
    if sys.platform == "linux":
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
