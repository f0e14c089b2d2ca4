"""The command from end to end: formats into each other, training runs, refusals, what it prints."""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from etils import epath

from maft_jax.cli import command_line, convert_weights
from maft_jax.config import from_config_dict, preset
from maft_jax.convert import verification
from maft_jax.convert.formats import ClipWeights, read_weights, write_weights
from maft_jax.convert.openai import to_openai
from maft_jax.models.clip import ClipConfig, random_parameters
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.towers.clip_vit import VisionConfig
from maft_jax.runtime import tree_rules
from maft_jax.runtime.tree_rules import fingerprint
from maft_jax.state import optimizer
from maft_jax.state.checkpointing import Checkpoints
from maft_jax.state.train_state import init_train_state, overlay
from tests.convert.big_vision_reference import BigVisionViT, random_tensors
from tests.convert.official_checkpoint import official_tensors
from tests.tiny_models import CLIP_TRAINABLE
from tests.torch_reference.torchvision_operators import declare_missing_operators

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
CONFIG = ClipConfig(
    VisionConfig(width=128, layers=3, patch_size=16, image_size=48, embed_dim=24),
    TextConfig(width=64, layers=1, vocab_size=60, context_length=9, embed_dim=24),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with clip.pt in OpenAI's layout."""
    declare_missing_operators()
    monkeypatch.chdir(tmp_path)
    write_weights(weights(), "clip.pt", "openai")
    return tmp_path


@functools.cache
def weights(seed: int = 0) -> ClipWeights:
    return ClipWeights.of(CONFIG, random_parameters(CONFIG, seed))


def convert(*arguments: str) -> int:
    """What the command does, in this process."""
    try:
        with flagsaver.flagsaver():
            checked = command_line.parse(
                ["convert_weights", *arguments], convert_weights.check_arguments
            )
            return convert_weights.main(checked)
    except SystemExit as stop:
        return stop.code


def assert_same_weights(path, expected: ClipWeights, **choices):
    found = read_weights(path, **choices)
    assert found.config == expected.config
    assert set(found.tensors) == set(expected.tensors)
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor.read(), expected.tensors[name].read(), err_msg=name)


FORMATS = {
    "openai": "openai.safetensors",
    "open_clip": "open_clip",
    "open_clip_custom_text": "custom_text",
    "transformers": "transformers",
}


def pairs_of_formats():
    """Every format is read once and written once; all other pairs are slow tests."""
    after = dict(zip(FORMATS, [*list(FORMATS)[1:], "openai"], strict=True))
    for pair in itertools.product(FORMATS, FORMATS):
        yield pytest.param(*pair, marks=() if after[pair[0]] == pair[1] else pytest.mark.slow)


@pytest.mark.parametrize(("first", "second"), list(pairs_of_formats()))
def test_every_format_of_a_whole_clip_turns_into_every_other(folder, first, second):
    assert convert("clip.pt", FORMATS[first], f"--to={first}") == 0
    there = f"again_{FORMATS[second]}"
    assert convert(FORMATS[first], there, f"--to={second}") == 0
    assert_same_weights(there, weights())
    assert read_weights(there).format_name == second


def test_library_reads_the_commands_result(folder):
    from transformers import CLIPModel

    assert convert("clip.pt", "clip", "--to=transformers") == 0
    model = CLIPModel.from_pretrained("clip")
    expected = to_openai(weights().parameters())["visual.proj"].T
    np.testing.assert_array_equal(model.visual_projection.weight.detach(), expected)


def test_half_precision_stays_as_it_was_if_asked_for(folder):
    half = {name: value.half() for name, value in torch.load("clip.pt").items()}
    torch.save(half, "half.pt")
    assert convert("half.pt", "clip", "--to=transformers", "--dtype=source") == 0
    assert convert("clip", "back.pt", "--to=openai", "--dtype=source") == 0
    back = torch.load("back.pt")
    assert all(torch.equal(back[name], value) for name, value in half.items())
    assert convert("half.pt", "full.pt", "--to=openai") == 0
    assert {value.dtype for value in torch.load("full.pt").values()} == {torch.float32}


def test_name_of_the_destination_chooses_between_formats(folder):
    assert convert("clip.pt", "clip_openai.safetensors") == 0
    assert convert("clip.pt", "tuned-OpenCLIP.pt", "--dtype=source") == 0
    assert convert("clip.pt", "open_clip_custom_text.pt") == 0
    assert read_weights("clip_openai.safetensors").format_name == "openai"
    assert "text.ln_final.bias" in torch.load("open_clip_custom_text.pt")
    assert "ln_final.bias" in torch.load("tuned-OpenCLIP.pt")
    np.savez("vit.npz", **random_tensors(BigVisionViT(), 32))
    assert convert("vit.npz", "big_vision_stacked.npz") == 0
    assert "params/img/Transformer/encoderblock/LayerNorm_0/bias" in np.load(
        "big_vision_stacked.npz"
    )


def test_image_tower_alone_and_with_the_text_of_another(folder, capsys):
    write_weights(weights(1), "other.pt", "openai")
    assert convert("clip.pt", "alone", "--to=transformers", "--image_only") == 0
    alone = read_weights("alone")
    assert alone.config == ClipConfig(CONFIG.vision, None)
    assert convert("alone", "merged.pt", "--to=openai", "--text_from=other.pt") == 0
    first, second = weights().tensors, weights(1).tensors
    merged = {path: (first if path.startswith("visual/") else second)[path] for path in first}
    assert_same_weights("merged.pt", dataclasses.replace(weights(), tensors=merged))
    np.savez("vit.npz", **random_tensors(BigVisionViT(out_dim=7), 32))
    assert convert("vit.npz", "bad.pt", "--text_from=other.pt") == 2
    assert "expected a text tower with embeddings of 7 numbers" in capsys.readouterr().err


def tuned_run(workdir: pathlib.Path, pretrained: str, **noted: str) -> dict[int, ClipWeights]:
    """A workdir with checkpoints that also noted `noted`, as training leaves them: by step."""
    settings = {"model.pretrained": pretrained, "data.root": "photos", "num_steps": 9}
    config_dict = preset("official")
    config_dict.update_from_flattened_dict(settings)
    config = from_config_dict(config_dict)
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    parameters = read_weights(pretrained).parameters()
    visual = parameters["visual"]
    tx = optimizer.make_optimizer(config.optimizer, config.num_steps)
    state = init_train_state(visual, CLIP_TRAINABLE, tx)
    checkpoints = Checkpoints(epath.Path(workdir), config.checkpointing)
    students = {}
    for step in (4, 9):
        trainable = jax.tree.map(lambda x, step=step: x + 0.01 * step, state.trainable)
        run_identity = {"pretrained": fingerprint(visual)} | noted
        saved = state.replace(step=jnp.int32(step), trainable=trainable)
        checkpoints.save(saved, run_identity, loss=1.0)
        tuned = jax.tree.map(np.asarray, trainable)
        parameters = parameters | {"visual": overlay(visual, tuned)}
        students[step] = ClipWeights.of(CONFIG, parameters)
    checkpoints.wait()
    checkpoints.close()
    return students


def everything_in(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_student_of_a_training_run_is_exported_in_any_format(folder, capsys):
    students = tuned_run(folder / "run", str(folder / "clip.pt"))
    before = everything_in(folder / "run")
    assert convert("run", "tuned.safetensors", "--to=open_clip") == 0
    assert_same_weights("tuned.safetensors", students[9])
    assert convert("run", "early", "--to=transformers", "--step=4") == 0
    assert_same_weights("early", students[4])
    assert convert("run", "alone", "--to=transformers", "--image_only") == 0
    assert read_weights("alone").config.text is None
    assert everything_in(folder / "run") == before, "nothing in the workdir changed"
    changed = {
        path
        for path, x in students[9].tensors.items()
        if not np.array_equal(x.read(), weights().tensors[path].read())
    }
    assert changed == {
        f"visual/{path}"
        for path in tree_rules.flatten(weights().parameters()["visual"])
        if "/attn/" in path or "ln_1" in path or "ln_2" in path or "ln_post" in path
    }
    assert convert("run", "x.pt", "--to=openai", "--step=5") == 2
    assert "a checkpoint of step 5; there are those of steps [4, 9]" in capsys.readouterr().err
    assert convert("run", "x.pt", "--to=openai", "--activation=gelu") == 2
    assert "for which activation=gelu has no meaning" in capsys.readouterr().err


def test_weights_that_a_run_did_not_begin_with_are_refused(folder, capsys):
    tuned_run(folder / "run", str(folder / "clip.pt"))
    write_weights(weights(1), "other.pt", "openai")
    os.rename("clip.pt", "moved.pt")
    assert convert("run", "tuned.pt", "--to=openai") == 2
    assert "say where (--pretrained=...)" in capsys.readouterr().err
    assert convert("run", "tuned.pt", "--to=openai", "--pretrained=other.pt") == 2
    assert "give those that the run began with" in capsys.readouterr().err
    assert not pathlib.Path("tuned.pt").exists()
    assert convert("run", "tuned.pt", "--to=openai", "--pretrained=moved.pt") == 0


def test_corrupt_checkpoint_of_a_run_is_refused(folder, capsys):
    tuned_run(folder / "run", str(folder / "clip.pt"))
    data = [p for p in (folder / "run/checkpoints/9").rglob("*") if p.is_file()]
    largest = max(data, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert convert("run", "tuned.pt", "--to=openai") == 2
    assert "is broken" in capsys.readouterr().err
    assert convert("run", "tuned.pt", "--to=openai", "--step=4") == 0


@pytest.mark.slow
def test_tuned_tower_drops_into_an_official_checkpoint(folder, capsys):
    theirs = {name: torch.from_numpy(value) for name, value in official_tensors().items()}
    torch.save({"model": theirs, "iteration": 5}, "theirs.pth")
    student = read_weights("theirs.pth")
    ours = {
        path: x + np.float16(0.5) if "ln_post" in path else x
        for path, x in ((path, np.asarray(t.read())) for path, t in student.tensors.items())
    }
    tuned = ClipWeights.of(student.config, tree_rules.unflatten(ours))
    write_weights(tuned, "tuned.safetensors", "openai")
    assert convert("tuned.safetensors", "ours.pth", "--into=theirs.pth", "--verify") == 0
    assert "5 masks on each image" in capsys.readouterr().out
    result = torch.load("ours.pth", weights_only=True)
    assert result["iteration"] == 5 and list(result["model"]) == list(theirs)
    changed = {name for name, x in theirs.items() if not torch.equal(x, result["model"][name])}
    assert changed == {"IPCLIP.ln_post.weight", "IPCLIP.ln_post.bias"}
    assert convert("clip.pt", "bad.pth", "--into=theirs.pth") == 2
    assert convert("clip.pt", "bad.pth", "--into=clip.pt") == 2
    assert convert("clip.pt", "bad.pth", "--into=missing.pth") == 2
    assert not pathlib.Path("bad.pth").exists()


def test_inspection_prints_tensors_architecture_and_fingerprints(folder, capsys):
    assert convert("clip.pt", "--inspect") == 0
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    kernel = "visual.transformer.resblocks.{}.mlp.c_fc.weight 3 x [512, 128] float32 786,432 bytes"
    assert kernel in lines
    assert "visual.conv1.weight 1 x [128, 3, 16, 16] float32 393,216 bytes" in lines
    parameters = weights().parameters()
    count = sum(x.size for x in jax.tree.leaves(parameters))
    total = f"{len(weights().tensors)} tensors of float32, {count:,} numbers, {4 * count:,} bytes"
    assert total in lines and f"parameters {total}" in lines
    assert "layers 3, patch_size 16, image_size 48" in printed
    assert f"fingerprint {fingerprint(parameters)}" in lines
    assert any(line.endswith(fingerprint(parameters["visual"])) for line in lines)
    assert os.listdir(folder) == ["clip.pt"]


@pytest.mark.slow
def test_verification_prints_the_largest_difference(folder, capsys, monkeypatch):
    assert convert("clip.pt", "clip", "--to=transformers", "--verify") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    compared = [line for line in lines if line and line[0] in "235"]
    assert [line[:2] for line in compared] == [["2", "images"], ["3", "texts"], ["5", "masks"]] * 2
    assert all(0 < float(line[-1]) < 1e-5 for line in compared)
    libraries = ["plain", "plain", "on", "transformers", "transformers", "on"]
    assert [line[2] for line in compared] == libraries
    monkeypatch.setattr(verification, "TOLERANCE", 0.0)
    assert convert("clip.pt", "other", "--to=transformers", "--verify") == 1
    assert "embeddings differ by more than" in capsys.readouterr().err
    assert not pathlib.Path("other").exists(), "a source that differs is not converted"


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("name", ["open_clip", "open_clip_custom_text"])
def test_verification_runs_open_clip(folder, name, activation):
    vision = dataclasses.replace(CONFIG.vision, activation=activation)
    config = ClipConfig(vision, dataclasses.replace(CONFIG.text, activation=activation))
    write_weights(dataclasses.replace(weights(), config=config), "clip", name)
    found = verification.verify("clip", read_weights("clip"))
    assert [comparison.library[:9] for comparison in found] == [
        "open_clip",
        "open_clip",
        "plain PyT",
    ]
    assert all(comparison.largest_difference < 1e-5 for comparison in found)


def test_verification_notices_another_activation(folder):
    wrong = read_weights("clip.pt", activation="gelu")
    with pytest.raises(verification.VerificationFailed, match="Is gelu the right activation"):
        write_weights(weights(), "clip", "transformers")
        verification.verify("clip", dataclasses.replace(wrong, format_name="transformers"))


def test_verification_of_another_library_says_what_to_install(folder, capsys):
    np.savez("vit.npz", **random_tensors(BigVisionViT(), 32))
    assert convert("vit.npz", "--verify") == 2
    assert "clone github.com/google-research/big_vision" in capsys.readouterr().err


def test_masks_and_images_of_big_vision_towers_are_what_plain_pytorch_computes(folder):
    np.savez("vit.npz", **random_tensors(BigVisionViT(), 32))
    found = verification.verify(None, read_weights("vit.npz"))
    assert [comparison.inputs[0] for comparison in found] == ["2", "5"]
    assert all(0 < comparison.largest_difference < 1e-5 for comparison in found)


def bomb(path: pathlib.Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {path.parent}/executed",)

    torch.save({"visual.proj": Bomb()}, path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected SOURCE [DESTINATION]"),
        (("clip.pt",), "expected a DESTINATION to write, or --inspect, or --verify"),
        (("a", "b", "c"), "expected SOURCE [DESTINATION]"),
        (("clip.pt", "x.pt", "--too=openai"), "Unknown command line flag 'too'"),
        (("clip.pt", "x.pt", "--to=tensorflow"), "expected one of openai, open_clip,"),
        (("clip.pt", "x.pt"), "choose one: --to=openai or --to=open_clip or --to=open_clip_custom"),
        (("clip.pt", "x"), "--to=open_clip_custom_text or --to=transformers"),
        (("clip.pt", "x.npz"), "--to=big_vision: activation='quick_gelu', there 'gelu_tanh'"),
        (("clip.pt", "x.bin"), "needs a name with .safetensors or .pt"),
        (("clip.pt", "clip.pt", "--to=openai"), "replace it with --overwrite"),
        (("clip.pt", "nowhere/x.pt", "--to=openai"), "the folder nowhere does not exist"),
        (("missing.pt", "x.pt", "--to=openai"), "missing.pt: no such file"),
        (("cut.pt", "x.pt", "--to=openai"), "cut.pt: truncated or corrupt"),
        (("bomb.pt", "x.pt", "--to=openai"), "which is forbidden"),
        (("clip.pt", "x.pt", "--to=openai", "--step=3"), "step=3 has no meaning"),
        (("random:tiny", "x.pt", "--to=openai", "--from=openai"), "from=openai has no meaning"),
        (("clip.pt", "x.pt", "--to=openai", "--activation=gelu"), "computes quick_gelu and these"),
        (("clip.pt", "x.pt", "--to=openai", "--image_only"), "there is no text tower"),
        (("clip.pt", "x.pth", "--into=clip.pt", "--to=openai"), "--into writes the image tower"),
        (("clip.pt", "x", "--image_only", "--text_from=clip.pt"), "exclude each other"),
    ],
)
def test_wrong_input_is_code_2_and_nothing_is_written(folder, capsys, arguments, message):
    content = pathlib.Path("clip.pt").read_bytes()
    pathlib.Path("cut.pt").write_bytes(content[: len(content) // 2])
    bomb(folder / "bomb.pt")
    before = everything_in(folder)
    assert convert(*arguments) == 2
    assert message in capsys.readouterr().err
    assert everything_in(folder) == before


def test_existing_file_is_replaced_only_if_asked_for(folder):
    write_weights(weights(1), "old.pt", "openai")
    assert convert("clip.pt", "old.pt", "--to=openai") == 2
    assert_same_weights("old.pt", weights(1))
    assert convert("clip.pt", "old.pt", "--to=openai", "--overwrite") == 0
    assert_same_weights("old.pt", weights())
    assert convert("old.pt", "old.pt", "--to=openai", "--overwrite") == 0
    assert_same_weights("old.pt", weights())
    pathlib.Path("full").mkdir()
    pathlib.Path("full/photo").write_text("dear")
    assert convert("clip.pt", "full", "--to=transformers", "--overwrite") == 2
    assert os.listdir("full") == ["photo"]


@pytest.mark.slow
def test_command_line_says_what_it_does_and_ends_with_its_code(folder):
    def run(*arguments):
        command = [sys.executable, "-m", "maft_jax.cli.convert_weights", *arguments]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    usage = run("--help")
    assert usage.returncode == 0 and "SOURCE" in usage.stdout and "--inspect" in usage.stdout
    done = run("clip.pt", "new.safetensors", "--to=openai")
    assert done.returncode == 0 and "wrote new.safetensors: " in done.stdout
    again = run("clip.pt", "new.safetensors", "--to=openai")
    assert again.returncode == 2 and "Traceback" not in again.stderr
    assert again.stderr.strip().startswith("new.safetensors exists")
