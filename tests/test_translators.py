"""`genlab translate` and `genlab sample` of sentences: a line for each line, whatever comes."""

import io
import re
from argparse import Namespace

import pytest
import torch
from translating import untrained

from genlab.cli import sample as sample_command
from genlab.cli import translate as translate_command
from genlab.cli.lines import text_sampler
from genlab.data.numbers import NumberNames, spelt
from genlab.evaluation import lines as lines_module
from genlab.evaluation.lines import LineTranslator, held_out_translations, translate_lines
from genlab.runs.folder import Run, list_runs
from genlab.samplers.beam import Beam
from genlab.samplers.tokens import Categorical, Greedy

TINY = (
    *("--config", "experiments/attention_numbers.yaml", "--data.numbers", "200", "--data.batch_size", "60"),
    *("--model.network.init_args.width", "8", "--model.schedule.warmup", "0", "--trainer.accelerator", "cpu"),
    *("--budget.examples", "120", "--budget.evaluate_every", "60", "--samples.num", "3"),
    *("--experiment", "numbers"),
)


@pytest.fixture(scope="module")
def data():
    return NumberNames(300, length=32)


@pytest.fixture
def model(data):
    """A model of numbers and their digits that knows nothing, and writes something else for each line."""
    made = untrained(data)
    with torch.no_grad():
        made.network.output.bias[int(data.tokenizer.encode("\n")[0])] = 6.0  # some have line breaks
    return made


@pytest.fixture
def translate(model, monkeypatch, tmp_path, genlab_command):
    """Runs the commands on this model, with a text as the standard input."""
    for command in (translate_command, sample_command):
        monkeypatch.setattr(command, "load", lambda options: (model, Run(tmp_path / "run")))

    def run(command, *arguments, text=b""):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        return genlab_command(command, tmp_path / "run", *arguments)

    return run


LINES = [spelt(n) for n in range(0, 100, 5)]


def on_one_line(text):
    return " ".join(text.splitlines())


def printed(lines):
    return "".join(f"{on_one_line(line)}\n" for line in lines)


def test_lines_in_are_as_many_lines_out_in_their_order(translate, model, tmp_path):
    expected = translate_lines(model, LINES)
    assert len(set(expected)) > 10 and any("\n" in line for line in expected)
    text = "\n".join(LINES)
    assert translate("translate", text=text.encode()) == (0, printed(expected), "")
    windows = ("\ufeff" + "\r\n".join(LINES) + "\r\n").encode()
    assert translate("translate", "-", text=windows) == (0, printed(expected), "")
    first, second = tmp_path / "a.txt", tmp_path / "b"
    first.write_text("\n".join(LINES[:7]))
    second.write_text("\n\n  \n" + LINES[9] + "\n")
    code, out, error = translate("translate", first, "-", second, "-o", tmp_path / "out.en", text=b"one")
    assert (code, error) == (0, "") and out.strip().endswith("out.en")
    wanted = [*expected[:7], *translate_lines(model, ["one"]), "", "", "", expected[9]]
    assert (tmp_path / "out.en").read_text() == printed(wanted)
    code, _, error = translate("translate", first, "-o", tmp_path / "out.en")
    assert code == 2 and "would be overwritten" in error
    assert translate("translate", first, "-o", tmp_path / "out.en", "--overwrite")[0] == 0
    assert (tmp_path / "out.en").read_text() == printed(expected[:7])


def test_lines_are_read_no_further_ahead_than_is_said_and_are_numbered_on(model):
    expected, taken = translate_lines(model, LINES), []
    coming = (taken.append(line) or line for line in LINES)
    translated = LineTranslator(model, batch_size=2, ahead=5)(coming)
    assert [next(translated) for _ in range(5)] == expected[:5] and len(taken) == 5
    assert list(translated) == expected[5:]
    model.sampler = Categorical()
    whole = translate_lines(model, LINES, seed=3)
    assert list(LineTranslator(model, 3, batch_size=4, ahead=7)(LINES)) == whole != expected


def test_a_huge_line_is_cut_and_what_is_unknown_is_named_once(translate, monkeypatch):
    text = "forty Ωß\nforty Ω\n" + "one " * 1_000_000 + "\none\n"
    code, out, error = translate("translate", text=text.encode())
    assert code == 0 and out.count("\n") == 4
    assert error == "! read as unknown, since training had no 'ß' 'Ω'\n! 1 lines were cut to 32 tokens\n"
    monkeypatch.setattr(lines_module, "AHEAD", 1)
    assert translate("translate", text=text.encode()) == (0, out, error)


def test_bytes_that_are_no_text_are_named_by_their_place_and_leave_no_file(translate, tmp_path):
    code, _, error = translate("translate", "-o", tmp_path / "out", text=b"one\ntwo \xff\n")
    assert (
        code == 3
        and error == "genlab: the standard input is not UTF-8: byte 8 is 0xff; convert it to UTF-8\n"
    )
    assert not (tmp_path / "out").exists()
    code, _, error = translate("translate", tmp_path)
    assert code == 2 and "is a folder: name a file" in error


def test_beams_are_searched_as_asked_and_nothing_is_left_to_chance(translate, model):
    lines = LINES[:8]
    text = "\n".join(lines).encode()
    greedy = translate("translate", text=text)[1]
    model.sampler = Categorical()
    assert translate("translate", text=text)[1] == greedy
    for options, sampler in (
        (("--beams", 3), Beam(3)),
        (("--beams", 3, "--length_penalty", 0), Beam(3, 0.0)),
        (("--beams", 1), Greedy()),
    ):
        code, out, _ = translate("translate", *options, text=text)
        model.sampler = sampler
        assert code == 0 and out == printed(translate_lines(model, lines))
        assert (out == greedy) is (sampler.__class__ is Greedy)
    own = Beam(2, 0.0)
    for asked, expected in (((None, 3.0), (2, 3.0)), ((5, None), (5, 0.0)), ((5, 1.0), (5, 1.0))):
        found = text_sampler(Namespace(beams=asked[0], length_penalty=asked[1]), own)
        assert (found.width, found.length_penalty) == expected
    assert text_sampler(Namespace(beams=None, length_penalty=None), own) is own
    model.sampler = Greedy()
    code, _, error = translate("translate", "--length_penalty", 1, text=text)
    assert code == 2 and "give --beams too" in error


@pytest.mark.parametrize("option", [["--reverse"], ["--tile", "0"], ["--degrade"]])
def test_options_of_pictures_are_refused_for_text(translate, option):
    code, out, error = translate("translate", *option, text=b"one\n")
    assert (code, out) == (2, "") and re.fullmatch(
        rf"genlab: {option[0]} is for pictures, and .*: leave it out.\n", error
    )


def test_a_translator_is_sampled_by_its_prompt_or_by_held_out_sentences(translate, model, data, monkeypatch):
    monkeypatch.setattr(sample_command, "data_of", lambda model, run: data)
    (expected,) = translate_lines(model, ["forty"])
    assert translate("sample", "--prompt", "forty") == (0, printed([expected]), "")
    code, out, error = translate("sample", "--prompt", "forty ß", "-n", 3)
    assert code == 0 and out.count("\n") == 3 and "'ß'" in error
    code, out, _ = translate("sample", "--prompt", "forty", "-n", 3, "--temperature", 2, "--seed", 1)
    model.sampler = Categorical(2.0)
    assert code == 0 and out == printed(translate_lines(model, ["forty"] * 3, seed=1))
    assert len(set(out.splitlines())) == 3
    model.sampler = Greedy()
    code, out, _ = translate("sample", "-n", 4)
    pairs, blocks = data.directed["test"], out.rstrip("\n").split("\n\n")
    assert code == 0 and len(blocks) == 4
    for block, source, found, target in zip(
        blocks, pairs.sources, translate_lines(model, pairs.sources[:4]), pairs.targets, strict=False
    ):
        assert (
            block
            == f"source       {source}\ntranslation  {on_one_line(found)}".rstrip()
            + f"\ntarget       {target}"
        )
    code, _, error = translate("sample", "--length", 9)
    assert code == 2 and "a translation ends by itself" in error


def test_translations_stand_between_what_they_are_made_from_and_what_they_were_to_be(model, data):
    found = held_out_translations(model, data, 99, "val")
    pairs = data.directed["val"]
    assert len(found) == len(pairs.sources) == 27
    assert [(one.source, one.target) for one in found] == list(zip(*pairs, strict=True))
    assert [one.translation for one in found] == translate_lines(model, pairs.sources)


def written(split):
    """Sources and targets of the walk's data."""
    return NumberNames(200).directed[split]


def pairs_in(text):
    """Sources and targets of a text that shows translations between them."""
    rows = [
        re.fullmatch(r"source +(.*)\ntranslation *(.*)\ntarget +(.*)", block)
        for block in text.strip().split("\n\n")
    ]
    return [(row[1], row[3]) for row in rows]


def test_sentences_walk_through_every_command(genlab_command, short_measures, tmp_path):
    code, _, error = genlab_command("fit", *TINY)
    assert code == 0, error
    run = list_runs(tmp_path / "outputs")[-1]
    first, *_, last = sorted(run.samples.glob("samples_*.txt"))
    assert first.name == "samples_0000000000.txt" and last.name == "samples_0000000120.txt"
    assert pairs_in(last.read_text()) == list(zip(*written("val"), strict=True))[:3]
    with short_measures():
        code, _, error = genlab_command("test", run.path)
    pictures = run.read()["test"]["pictures"]
    assert code == 0 and {*pictures} == {"translations", "attention"}, error
    assert (
        pairs_in((run.path / pictures["translations"]).read_text())
        == list(zip(*written("test"), strict=True))[:16]
    )
    code, out, error = genlab_command("sample", run.path, "-n", 2)
    assert code == 0 and out.count("source ") == 2 and not error
    code, _, error = genlab_command("report", run.path, "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert code == 0 and "<h3>translations</h3>" in page and "source       " in page, error
