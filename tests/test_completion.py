"""What a shell is told: every command, its options, the experiments' names."""

import contextlib
import io
import subprocess
import sys

import pytest

from genlab.cli.main import OTHERS, TRAINING, main

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash offers for the last of some words."""
    script, printed = tmp_path_factory.mktemp("completion") / "genlab.bash", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["--print_completion", "bash"]) == 0
    script.write_text(printed.getvalue())
    ask = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_genlab; echo "${COMPREPLY[*]}"'
    )

    def offered(*words):
        command = ["bash", "-c", ask, "bash", str(script), "genlab", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return offered


@pytest.mark.skipif(sys.platform == "win32", reason="asks bash")
def test_bash_completes_commands_options_and_experiments(complete):
    assert set(complete("")) >= {*TRAINING, *OTHERS}
    assert complete("exp") == ["export", "experiments"]
    assert complete("fit", "--config", "ddpm_d") == ["ddpm_digits"]
    assert complete("fit", "--budget.exa") == ["--budget.examples"]
    assert "--trainer.devices" in complete("resume", "--trainer.dev")
    assert complete("sample", "--see") == ["--seed"]
    assert complete("experiments", "--copy", "realnvp_m") == ["realnvp_mnist", "realnvp_moons"]
    assert complete("data", "ch") == ["check"]


def test_a_shell_without_a_script_and_a_missing_package_are_said(genlab_command, monkeypatch):
    code, _, error = genlab_command("--print_completion", "fish")
    assert code == 2 and "bash, zsh, tcsh" in error
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, error = genlab_command("--print_completion", "bash")
    assert code == 2 and "pip install 'genlab[completion]'" in error
