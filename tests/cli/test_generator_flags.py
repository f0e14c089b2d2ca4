"""Which generator --generator and --proposals mean, beside the weights of the command."""

import types

import pytest
from absl import flags

from maft_jax.cli.generator_flags import GeneratorFlags
from tests.command_lines import answers


def flags_of(generator, proposals, weights="maft.pth"):
    values = flags.FlagValues()
    chosen, path, clip = (
        flags.DEFINE_string(name, value, "", flag_values=values)
        for name, value in (
            ("generator", generator),
            ("proposals", proposals),
            ("weights", weights),
        )
    )
    values.mark_as_parsed()
    return GeneratorFlags(chosen, path, "superpixels", clip)


def test_freeseg_is_in_the_checkpoint_of_the_weights_unless_it_is_told_another():
    assert flags_of("freeseg", "").path == "maft.pth"
    assert flags_of("freeseg", "other.pth").path == "other.pth"
    assert flags_of("mask2former", "").path == "" == flags_of(None, "").path


def test_other_generators_are_told_their_weights():
    with pytest.raises(ValueError, match="superpixels take no path, all others need one"):
        flags_of("mask2former", "").make()


def test_a_generator_that_reads_no_names_is_the_same_for_all():
    generator_of = flags_of(None, "").make_for_any_names()
    assert generator_of(["cat"]) is generator_of(["dog"])


def test_one_that_reads_them_is_made_of_each_list(monkeypatch):
    made = []

    def make(self, names=()):
        made.append(tuple(names))
        return types.SimpleNamespace(name="transformers", reads_names=True)

    monkeypatch.setattr(GeneratorFlags, "make", make)
    generator_of = flags_of("transformers", "sam3").make_for_any_names()
    assert generator_of(["cat"]) is not generator_of(["dog"])
    assert made[1:] == [("cat",), ("dog",)]


def test_predict_refuses_flags_that_what_was_asked_for_does_not_read():
    given = ["--weights=fcclip.pth", "--image=a.jpg", "--classes=cat"]
    of_fcclip = (
        "ensemble_exponents=1,1",
        "trained_classes=a.txt",
        "resized=scores",
        "transfer=panoptic",
    )
    of_others = "proposals=a", "flip", "mask_rule=maft", "class_token=1", "head_width=8", "step=3"
    commands = {flag: [*given, f"--{flag}"] for flag in of_fcclip}
    commands |= {flag: [*given, f"--{flag}", "--generator=fcclip"] for flag in of_others}
    for flag, answer in answers("maft_jax.cli.predict", commands).items():
        name = flag.partition("=")[0]
        why = "only with" if flag in of_fcclip else "has no meaning with"
        assert answer.returncode == 2, flag
        assert f"--{name}: {why} --generator=fcclip" in answer.stderr
