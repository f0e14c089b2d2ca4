"""How cli.export_program answers what is wrong."""

from tests.command_lines import answers

COMMANDS = {
    "no format": (
        ["random:tiny", "out"],
        "expected --format=stablehlo, onnx, savedm",
    ),
    "no folder": (["random:tiny", "--format=onnx"], "expected WEIGHTS OUT, got ['random:tiny']"),
    "aspect": (
        ["random:tiny", "out", "--format=onnx", "--image_aspect=keep"],
        "exported programs read squares; expected squash",
    ),
    "unknown": (["random:tiny", "out", "--format=coreml"], "stablehlo|onnx|savedmodel|tflite"),
}


def test_wrong_command_lines_have_a_short_answer():
    found = answers(
        "maft_jax.cli.export_program", {name: line for name, (line, _) in COMMANDS.items()}
    )
    for name, (_, message) in COMMANDS.items():
        assert found[name].returncode == 2, name
        assert message in found[name].stderr and "Traceback" not in found[name].stderr, name
