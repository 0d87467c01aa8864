"""A configuration that is wrong gets one line with its file, place and remedy, whatever is wrong with it."""

import os
import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from genlab.amounts import Examples, Seconds
from genlab.cli.settings import stored_text
from genlab.configuration.plain_yaml import parse_yaml
from genlab.configuration.trust import SINCE

FIT = ["fit", "--config", "experiments/dcgan_digits.yaml"]


def bomb(levels=9):
    """Anchors that unfold to 10^levels values."""
    lines = ["a0: &a0 [" + ", ".join("x" * 10) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, levels)]
    return "\n".join(lines)


FAULTS = {
    "a tab": ("budget:\n\texamples: 1", ":2:1:", "indent by spaces"),
    "an open brace": ("budget: {examples: 1", ":2:1:", "expected"),
    "a colon too many": ("budget: examples: 1", ":1:17:", "mapping values are not allowed"),
    "two documents": ("a: 1\n---\nb: 2", ":2:1:", "a second document"),
    "a tag that runs code": ("a: !!python/object/apply:os.system [ls]", ":1:4:", "plain values only"),
    "a tag of someone's own": ("a: !mine 1", ":1:4:", "plain values only"),
    "a list that contains itself": ("a: &a [*a]", ":1:4:", "contains itself"),
    "a mapping that contains itself": ("a: &a {b: *a}", ":1:4:", "contains itself"),
    "an anchor that is not there": ("a: *b", ":1:4:", "anchor that is not there"),
    "anchors that unfold without end": (bomb(), ":5:5:", "unfold to more than"),
    "a key twice": ("budget: {}\ntrainer: {}\nbudget: {}", ":3:1:", "a second time, after line 1"),
    "a key twice deep inside": ("budget: {examples: 1, examples: 2}", ":1:23:", "'examples' stands here"),
    "a key that is a list": ("? [a, b]\n: 1", ":1:3:", "no plain text"),
    "brackets without end": ("[" * 10_000, ":", "nested deeper"),
    "lists without end": ("- " * 10_000, ":", "nesting"),
    "a byte that no text has": ("a: \x00", ":", "control characters"),
    "more than anyone writes": ("a: 1\n" + "# x\n" * 500_000, ":", "longer than"),
    "a list in place of keys": ("[model, data]", "", "a list in place of keys"),
    "nothing": ("", "", "nothing in place of keys"),
    "one word": ("word", "", "a single value in place of keys"),
    "a misspelt section": ("modle: {}", "", "no key 'modle'. Did you mean 'model'?"),
    "a misspelt section with a value": ("evaluat: {num_samples: 3}", "", "Did you mean 'evaluate'?"),
    "a misspelt empty key of the trainer": ("trainer: {precison: {}}", "", "Did you mean 'precision'?"),
    "a misspelt empty key of a group": ("budget: {exmples: {}}", "", "Did you mean 'examples'?"),
    "a list in place of a section": ("trainer: [precision]", "", "a list in place of keys"),
    "a key of the parser's own": ("__path__: x", "", "no key '__path__'"),
}


@pytest.mark.fault(55)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_wrong_is_named_with_the_place(fault, genlab_command, tmp_path):
    text, where, what = FAULTS[fault]
    path = tmp_path / "more.yaml"
    path.write_text(text)
    code, _, error = genlab_command(*FIT, "--config", path)
    assert code == 2 and error.count("\n") == 1, error
    assert f"more.yaml{where}" in error and what in error


def test_the_same_faults_are_found_in_a_file_that_another_one_names(genlab_command, tmp_path):
    for name in ("a key twice deep inside", "anchors that unfold without end", "a tag that runs code"):
        (tmp_path / "inner.yaml").write_text(FAULTS[name][0])
        (tmp_path / "outer.yaml").write_text("budget: inner.yaml")
        code, _, error = genlab_command(*FIT, "--config", tmp_path / "outer.yaml")
        assert code == 2 and error.count("\n") <= 3, error


BYTES = {
    "Latin-1": ("model: {}  # é".encode("latin-1"), "is no UTF-8 text: byte 13 is 0xe9. Save it as UTF-8."),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no UTF-8 text"),
}


@pytest.mark.fault(55)
@pytest.mark.parametrize("name", BYTES)
def test_a_file_that_is_no_text_is_named_with_the_byte(name, genlab_command, tmp_path):
    content, what = BYTES[name]
    path = tmp_path / "more.yaml"
    path.write_bytes(content)
    code, _, error = genlab_command(*FIT, "--config", path)
    assert code == 2 and error.count("\n") == 1 and what in error


def test_a_byte_order_mark_is_no_fault(genlab_command, tmp_path):
    path = tmp_path / "more.yaml"
    path.write_bytes("budget: {examples: 64}".encode("utf-8-sig"))
    code, out, error = genlab_command(*FIT, "--config", path, "--print_config")
    assert code == 0 and "examples: 64" in out, error


PATHS = {
    "that is not there": ("nowhere/x.yaml", "nowhere/x.yaml does not exist"),
    "that is misspelt": ("experiments/dcgan_digts.yaml", "Near it: experiments/dcgan_digits.yaml"),
    "that is a folder": ("experiments", "is a folder. Near it: experiments/"),
    "without a name": ("", "--config needs a file"),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_configuration_is_looked_for_at_a_path(name, genlab_command):
    path, what = PATHS[name]
    code, _, error = genlab_command("fit", "--config", path)
    assert code == 2 and error.count("\n") == 1 and what in error


def test_yaml_without_a_fault_is_read_as_ever():
    text = "a: &a {x: 1, y: [2, 3.5]}\nb: {<<: *a, x: 2}\nc: null\nd: 'text'\n"
    assert parse_yaml(text, "x") == {
        "a": {"x": 1, "y": [2, 3.5]},
        "b": {"x": 2, "y": [2, 3.5]},
        "c": None,
        "d": "text",
    }


VALUES = {
    "trainer.precision": ("7", "64, 32, 16,"),
    "budget.examples": ("many", "a number such as 300000, 300k or 1e6 or null, got many"),
    "budget.seconds": ("5 parsecs", "a time such as 90, 90s or 5m or null"),
    "trainer.callbacks": ("genlab.callbacks.checkpoints.copy", "Callback or null"),
    "model.half_life": ("x", "In GAN: half_life must be int, got x"),
    "model.generator_optimizer": ("null", "In GAN: generator_optimizer must be given"),
    "model.balance.penalty": ("None", "In GAN: balance.penalty is 'None': write null for none."),
    "model.generator_optimzer": ("x", "Did you mean 'generator_optimizer'?"),
    "model.bogus": ("1", "It accepts: generator, discriminator, loss"),
    "model.loss": ("Hing", "Did you mean 'Hinge'?"),
    "model.discriminator_optimizer": ("torch.optim.Adamm", "Did you mean 'Adam'?"),
    "log_to": ("[wandbb]", "wandb or tensorboard"),
}


@pytest.mark.parametrize("key", VALUES)
def test_a_wrong_value_is_named_with_everything_that_is_allowed(key, genlab_command):
    value, what = VALUES[key]
    code, _, error = genlab_command(*FIT, f"--{key}", value)
    assert code == 2 and error.count("\n") == 1 and what in error, error


def test_a_class_that_this_torch_does_not_have_yet_names_the_torch_that_has_it(genlab_command, monkeypatch):
    monkeypatch.setitem(SINCE, "torch.optim.Later", "99.1")
    code, _, error = genlab_command(*FIT, "--model.discriminator_optimizer", "torch.optim.Later")
    assert code == 2 and "torch.optim.Later came with torch 99.1, and this is torch" in error, error


def test_what_is_missing_is_said_with_the_way_to_give_it(genlab_command):
    code, _, error = genlab_command("fit")
    assert code == 2 and "--model and --data missing: give --config FILE" in error


def test_an_option_wins_over_a_file_wherever_it_stands(genlab_command, tmp_path):
    path = tmp_path / "more.yaml"
    path.write_text("budget: {examples: 64}")
    for arguments in (
        ["--budget.examples", "128", "--config", path],
        ["--config", path, "--budget.examples=128"],
    ):
        code, out, _ = genlab_command(*FIT, *arguments, "--print_config")
        assert code == 0 and re.search(r"budget:\n  examples: 128\n", out)


def test_an_option_that_is_given_twice_is_said_unless_it_says_the_same(genlab_command, recwarn):
    twice = ("--budget.examples", "64", "--budget.examples=128", "--print_config")
    code, out, _ = genlab_command(*FIT, *twice)
    (said,) = [str(warning.message) for warning in recwarn if "given twice" in str(warning.message)]
    assert said == "--budget.examples is given twice, as 64 and as 128; the last one holds."
    assert code == 0 and "examples: 128" in out
    recwarn.clear()
    code, out, _ = genlab_command(*FIT, "--budget.examples", "64", "--budget.examples=64", "--print_config")
    assert code == 0 and "examples: 64" in out
    assert not [warning for warning in recwarn if "given twice" in str(warning.message)]


def test_examples_are_read_as_people_write_them(genlab_command):
    for amount, number in {"10k": 10_000, "1e6": 10**6, "1M": 10**6, "640": 640}.items():
        assert Examples(amount) == number
    code, out, _ = genlab_command(*FIT, "--budget.examples", "10k", "--print_config")
    assert code == 0 and "examples: 10000\n" in out


@pytest.mark.parametrize("amount, number", {"90": 90, "90s": 90, "5m": 300, "1.5h": 5_400}.items())
def test_times_are_read_as_people_write_them(amount, number):
    assert Seconds(amount) == number


@pytest.mark.parametrize("amount", ["", "k", "10x", "nan", "inf", "1e999", "ten", True])
def test_another_text_is_no_amount(amount):
    for kind in (Examples, Seconds):
        with pytest.raises(ValueError, match="must be"):
            kind(amount)


def test_settings_do_not_come_from_the_environment(genlab_command, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("PYTEST_BUDGET__EXAMPLES", "77")
    monkeypatch.setenv("GENLAB_FIT__BUDGET__EXAMPLES", "77")
    code, out, _ = genlab_command(*FIT, "--print_config")
    assert code == 0 and "examples: 77" not in out
    assert "JSONARGPARSE_DEFAULT_ENV" not in os.environ


def test_a_run_configuration_that_is_damaged_is_named(copy_of_trained, genlab_command):
    run = copy_of_trained(
        *FIT[1:], "--budget.examples=64", "--budget.evaluate_every=64", "--evaluate.num_samples=8"
    )
    Path(run / "config.yaml").write_text("model: {class_path: GAN")
    genlab_command("--version")  # so that what the training said is not counted
    for command in ("sample", "test", "resume"):
        code, _, error = genlab_command(command, run)
        assert code == 2 and "config.yaml:2:1:" in error and error.count("\n") == 1, error


def test_every_exit_code_is_named_by_the_help_and_by_the_security_page(genlab_command):
    from genlab.errors import EXIT_CODES

    _, out, _ = genlab_command("--help")
    page = Path("SECURITY.md").read_text(encoding="utf-8")
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^  {code} +{re.escape(meaning)}$", out, re.M)
        assert f"| {code} | {meaning.split(':')[0]}" in page


def test_a_run_keeps_whole_paths_of_all_that_was_named_where_it_was_begun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    keys = ("model.first_stage", "data.path", "evaluate.drawing.ranker")
    parser = ArgumentParser()
    for key in keys:
        parser.add_argument(f"--{key}", type=str)
    for given, kept in (("there", str(tmp_path / "there")), ("contrastive_shapes", "contrastive_shapes")):
        values = parser.parse_args([f"--{key}={given}" for key in keys])
        stored = yaml.safe_load(stored_text(values, parser))
        assert stored == {
            "model": {"first_stage": kept}, "data": {"path": kept}, "evaluate": {"drawing": {"ranker": kept}}
        }  # fmt: skip
