"""Signals at random moments of whole commands: each ends with its code, and soon.

`MAFT_JAX_SIGNALS=200 pytest -m slow tests/cli/test_signals.py` sends more of them.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests import runs

NUM_SIGNALS = int(os.environ.get("MAFT_JAX_SIGNALS", "1"))
MOST_SECONDS = 20.0
"""Until the end: half of it is what a command may take that reaches no safe point."""
LAST_SECOND = {"precompute": 3.0, "convert": 5.0, "visualize": 6.0, "predict": 9.0}
"""When the last signals come, perhaps as the command ends by itself; of other commands OTHERS."""
OTHERS = 12.0
_FIRST_SECOND = 0.15  # before, Python itself starts, and the signal ends it by its own default


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("commands")
    data = runs.make_data(folder)
    photos = data["data.root"]
    training = runs.command(data, folder / "run", num_steps=10**6)
    settings = [argument for argument in training if argument.startswith("--config")]
    cli = [sys.executable, "-m", "maft_jax.cli."]

    def command(name: str, *arguments: object) -> list[str]:
        return [*cli[:2], cli[2] + name, *map(str, arguments)]

    return {
        "train": training,
        "evaluate": [
            *(sys.executable, "-m", "maft_jax.main", "--config=configs/eval_only.py"),
            *(f"--workdir={folder / 'evaluation'}", f"--config.evaluation.roots.folder={photos}"),
            *(a for a in settings if "pretrained" in a or "model" in a or "cache_dir" in a),
        ],
        "precompute": command(
            "precompute_proposals", *settings, f"--config.data.records={folder / 'records'}"
        ),
        "predict": command(
            "predict",
            *("--weights=random:tiny", "--classes=a, b", f"--image={photos}/images"),
            *(f"--out={folder / 'out'}", f"--cache_dir={folder / 'cache'}"),
        ),
        "convert": command(
            "convert_weights", "random:tiny", folder / "w.pt", "--to=openai", "--overwrite"
        ),
        "visualize": command("visualize", *settings, f"--out={folder / 'picture.png'}"),
        "benchmark": command("benchmark", *settings, "--what=step,input", "--steps=1000"),
        "benchmark_input": command("benchmark_input", "--num_batches=1000"),
        "demo": command("demo", f"--workdir={folder / 'demo'}"),
        "train_tiny_clip": command("train_tiny_clip", f"--workdir={folder / 'clip'}"),
        "teacher": command(
            "precompute_proposals",
            *settings,
            f"--config.data.records={folder / 'teacher'}",
            *("--config.loss.cached_teacher=True", "--config.data.augment=False"),
        ),
        "diagnose": command(
            "diagnose",
            *("--config=configs/eval_only.py", f"--out={folder / 'diagnosis'}"),
            f"--config.evaluation.roots.folder={photos}",
            *(a for a in settings if "pretrained" in a or "model" in a or "cache_dir" in a),
        ),
        "study": command(
            "shapes_world_study", f"--workdir={folder / 'study'}", f"--page={folder / 'page'}"
        ),
        "plan": command("plan", *settings, "--topology=v5e:2x2", f"--json={folder / 'plan.json'}"),
        "scaling_page": command(
            "scaling_page", f"--workdir={folder / 'plans'}", f"--page={folder / 'scaling'}"
        ),
        "web_page": command("web_page", "--weights=random:tiny"),
    }


def end(arguments: list[str], number: int, seconds: float) -> tuple[int, bool, str]:
    """Exit code, whether the command was over before the signal, and what was printed."""
    process = runs.start(arguments, start_new_session=True, warm=False)
    time.sleep(seconds)
    was_over = process.poll() is not None
    process.send_signal(number)
    try:
        output, _ = process.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, was_over, output


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("train", "evaluate", "precompute", "predict", "convert", "visualize"),
        *("benchmark", "benchmark_input", "demo", "train_tiny_clip", "teacher"),
        *("diagnose", "study", "plan", "scaling_page", "web_page"),
    ],
)
def test_signal_ends_every_command_at_any_moment(commands, name):
    rng = random.Random(name)
    for _ in range(NUM_SIGNALS):
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        seconds = rng.uniform(_FIRST_SECOND, LAST_SECOND.get(name, OTHERS))
        code, was_over, output = end(commands[name], number, seconds)
        where = f"{name}: {number.name} after {seconds:.2f} s\n{output}"
        finished = code == 0 and (was_over or name in LAST_SECOND)
        assert code == 128 + number or finished, where
        assert "Traceback" not in output and "Exception ignored" not in output, where
