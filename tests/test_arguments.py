"""What a person may type by mistake, to every command: one short answer and the right exit code."""

import os
import re

import numpy as np
import pytest
from PIL import Image
from test_walks import SMALL

from genlab.cli import arguments
from genlab.cli.main import OTHERS, TRAINING

NUMBERS = ("", "nothing", "-1", str(10**30), "nan", "inf", "-inf", "1e400", "0x10", "9" * 5000, "\x1b[31m")
COUNTS = (*NUMBERS, "0", "1.5")
SEEDS = (*NUMBERS, "1.5")
WORDS = ("", " ", "nothing", "\x1b[31m\u202e", "x" * 5000)
NAMES = ("", " ", "a/b", "..", "*", "\x1b[31m")

# What lies in the folder of the test; `{run}` and `{image}` stand for good ones.
PLACES = ("", "missing", "missing/below", "text.txt/below", "{long}", "~no-such-user/x", "dangling", "loop")
NO_RUN = (*PLACES, "text.txt", "binary.bin", "pipe", "empty", "\x1b[31m\u202e")
FEW_RUNS = ("", "missing", "pipe", "empty", "\x1b[31m\u202e")  # of commands that open a run as `sample` does
NO_FILE = (*PLACES, "pipe", "empty", "closed.png")
NO_IMAGE = (*NO_FILE, "text.png", "binary.bin", "empty.png", "cut.png")
NO_FOLDER = (*PLACES, "text.txt", "pipe")
NO_OUTPUT_FOLDER = ("", "text.txt", "text.txt/below", "dangling", "{long}", "pipe")
NO_OUTPUT_FILE = ("", "text.txt/below.png", "empty", "{long}.png", "picture.of-no-kind", "dangling/x.png")

NO_WEIGHTS_FILE = ("", "text.txt/x.safetensors", "empty", "x.png", "{long}.safetensors")
NO_FILM = ("", "text.txt", "text.txt/x.gif", "dangling/x.gif", "{long}.gif")

ON_RUNS = (
    *("sample", "neighbours", "reconstruct", "interpolate", "inpaint", "complete", "restore", "translate"),
    *("export", "speed"),
)
ARGUMENTS = [  # a command with VALUE in it, what is given for it, and the exit codes that say so
    *[
        (f"{command} VALUE", FEW_RUNS, {2})
        for command in (
            *("test", "validate", "predict", "resume"),
            *("samples", "neighbours", "interpolate", "speed"),
        )
    ],
    ("sample VALUE", NO_RUN, {2}),
    *[(f"{command} VALUE {{image}}", FEW_RUNS, {2}) for command in ("reconstruct", "restore", "complete")],
    ("translate VALUE {image}", FEW_RUNS, {2}),
    ("export VALUE --to safetensors", FEW_RUNS, {2}),
    ("export {run} --to VALUE", ("", "nothing", "\x1b[31m"), {2}),
    ("export {run} --to safetensors -o VALUE", NO_WEIGHTS_FILE, {2}),
    ("export {run} --to hub -o VALUE", NO_OUTPUT_FOLDER, {2}),
    ("translate {run} VALUE", NO_FILE, {2}),
    ("inpaint VALUE {image} {image}", FEW_RUNS, {2}),
    ("sample VALUE --film", FEW_RUNS, {2}),
    ("compare VALUE", NO_RUN, {2}),
    ("report VALUE", NO_RUN, {2}),
    ("records VALUE -o kept", FEW_RUNS, {2}),
    ("runs VALUE", NO_FOLDER, {2}),
    ("data check VALUE", (*PLACES, "pipe", "binary.bin", "empty"), {2, 3}),
    ("data check text.txt --source_path VALUE", NO_FILE, {2}),
    ("sample {run} --image VALUE", NO_IMAGE, {2}),
    ("reconstruct {run} VALUE", NO_IMAGE, {2}),
    ("restore {run} --noise 9 VALUE", NO_IMAGE, {2}),
    ("inpaint {run} VALUE {image}", NO_IMAGE, {2}),
    ("inpaint {run} {image} VALUE", NO_IMAGE, {2}),
    ("complete {run} VALUE", NO_IMAGE, {2}),
    ("interpolate {run} --images {image} VALUE", NO_IMAGE, {2}),
    ("sample {run} --checkpoint VALUE", (*NO_FILE, "binary.bin"), {2, 4}),
    ("sample {run} --device VALUE", (*WORDS, "cuda:99", "cuda:-1"), {2}),
    ("neighbours {run} --extractor VALUE", ("", "missing", "text.txt"), {2, 5}),
    ("speed {run} --extractor VALUE", ("", "inception:nothing"), {2, 5}),
    *[
        (f"{command} {{run}} {option} VALUE", values, {2})
        for option, values, commands in (
            ("-n", COUNTS, "sample neighbours interpolate inpaint complete"),
            ("--seed", SEEDS, "sample neighbours inpaint complete restore speed"),
            ("--label", NUMBERS, "sample interpolate reconstruct inpaint restore"),
            ("--batch_size", COUNTS, "sample neighbours speed"),
            ("--seeds 0", SEEDS, "interpolate"),
            ("--steps", COUNTS, "inpaint restore"),
            ("--resamplings", NUMBERS, "inpaint"),
            ("--rows", NUMBERS, "complete"),
            ("--pixels", NUMBERS, "complete"),
            ("--tile", NUMBERS, "translate"),
            ("--beams", COUNTS, "translate"),
            ("--length_penalty", NUMBERS, "translate"),
            ("--noise", NUMBERS, "restore"),
            ("--blur", (*NUMBERS, "0"), "restore"),
            ("--shrink", (*COUNTS, "1"), "restore"),
            ("--passes", COUNTS, "speed"),
            ("--num_samples", (*COUNTS, "1"), "speed"),
            ("--samplers", ("", "nothing"), "speed"),
            ("--path", WORDS, "interpolate"),
            ("--strength", (*NUMBERS, "0", "1.1"), "sample"),
            ("--length", COUNTS, "sample"),
            ("--temperature", (*NUMBERS[:3], *NUMBERS[4:], "0"), "sample"),
            ("--top_k", NUMBERS, "sample"),
            ("--top_p", (*NUMBERS, "0", "1.1"), "sample"),
            ("--unknown", ("", "x"), " ".join(ON_RUNS)),
        )
        for command in commands.split()
    ],
    *[
        (f"{command} --output VALUE", NO_OUTPUT_FOLDER, {2})
        for command in (
            *("sample {run}", "reconstruct {run} {image}", "inpaint {run} {image} {image}"),
            *("restore {run} {image}", "complete {run} {image}"),
            "speed {run}",
        )
    ],
    ("translate {run} {image} --output VALUE", ("text.txt", "pipe"), {2}),  # loads first, as `sample` does
    ("neighbours {run} --output VALUE", NO_OUTPUT_FILE, {2}),
    ("interpolate {run} --output VALUE", NO_OUTPUT_FILE, {2}),
    ("samples {run} --film --output VALUE", NO_FILM, {2}),
    ("compare {run} --columns VALUE", WORDS, {2}),
    ("compare {run} --rank VALUE", WORDS, {2}),
    ("compare {run} --verdict VALUE", (*NUMBERS, "1.5"), {2}),
    ("compare --refresh VALUE", (*NO_FILE, "text.txt", "binary.bin"), {2}),
    ("report {run} -o VALUE", ("", "text.txt/below", "empty", "missing/x.html", "{long}"), {2}),
    ("records {run} -o VALUE", NO_OUTPUT_FOLDER, {2}),
    ("score VALUE {run} --extractor digits", NO_IMAGE, {2, 3}),
    ("score {image} VALUE --extractor digits", NO_IMAGE, {2, 3}),
    ("score {image} {run} --training VALUE --extractor digits", (*PLACES, "pipe"), {2}),
    ("score {image} {run} --extractor VALUE", ("", "missing", "text.txt"), {2, 5}),
    ("score {image} {run} --extractor digits --metrics VALUE", WORDS, {2}),
    ("score {image} {run} -n VALUE", (*COUNTS, "1"), {2}),
    ("score {image} {run} --extractor digits --output VALUE", ("", "text.txt/x.json", "empty", "x.png"), {2}),
    ("sample {run} --to VALUE", ("", "text.txt/x.npz", "empty", "x.png", "{long}.npz"), {2}),
    ("experiments VALUE", (*WORDS[:2], *WORDS[3:]), {2}),
    ("experiments --copy VALUE", (*WORDS, "../x", "text.txt"), {2}),
    ("experiments --copy gan_digits --output VALUE", ("", "text.txt", "text.txt/below", "{long}"), {2, 7}),
    ("new VALUE own_package/part", WORDS, {2}),
    ("new family VALUE", (*WORDS, "text.txt/part", "random/part", "own-package/part"), {2}),
    ("bench VALUE --families gan", NAMES, {2}),
    ("bench digits --families VALUE", WORDS, {2}),
    ("bench digits --families gan --budget VALUE", (*COUNTS[:-1], "0s", "-5m", "90x"), {2}),
    ("bench digits --families gan --name VALUE", NAMES, {2}),
    ("bench digits --families gan --experiments VALUE", (*NO_FOLDER, "empty"), {2}),
    *[(f"bench digits --families gan --{name} VALUE", COUNTS, {2}) for name in ("seeds", "trials", "jobs")],
    ("bench digits --families gan --evaluations VALUE", COUNTS, {2}),
    ("bench digits --families gan --on VALUE", (*WORDS, "local:0", "tcp://x", "slurm:x"), {2}),
    ("bench digits --families gan --resources VALUE", WORDS, {2}),
    ("lr {image} --batches VALUE", (*COUNTS, "9"), {2}),
    ("lr {image} --least VALUE", (*NUMBERS, "0"), {2}),
    ("lr {image} --most VALUE", (*NUMBERS[:3], *NUMBERS[4:], "0"), {2}),
    ("lr {image} -o VALUE", NO_OUTPUT_FILE, {2}),
    ("sweep VALUE --over a.b=int:1:2", NO_FILE, {2}),
    ("sweep {image} --over VALUE", (*WORDS, "a.b", "a.b=int:2:1", "a.b=lgo:1:2"), {2}),
    *[(f"sweep {{image}} --over a.b=int:1:2 --{name} VALUE", COUNTS, {2}) for name in ("trials", "jobs")],
    ("sweep {image} --over a.b=int:1:2 --name VALUE", NAMES, {2}),
    ("sweep {image} --over a.b=int:1:2 --on VALUE", WORDS, {2}),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with everything that is not what it seems."""
    folder = tmp_path_factory.mktemp("places")
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(folder / "image.png")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("a text")
    (folder / "text.png").write_text("a text")
    (folder / "binary.bin").write_bytes(bytes(range(256)) * 9)
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes((folder / "image.png").read_bytes()[:50])
    (folder / "closed.png").write_bytes((folder / "image.png").read_bytes())
    (folder / "closed.png").chmod(0)
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture(scope="module")
def run(trained_once, tiny_extractor):
    return trained_once("--config", "experiments/ddpm_digits.yaml", "--extractor", tiny_extractor(1), *SMALL)


def test_every_command_is_tried():
    assert {line.split()[0] for line, _, _ in ARGUMENTS} == {*TRAINING, *OTHERS} - {"fit"}


@pytest.mark.parametrize(("line", "values", "codes"), ARGUMENTS, ids=[line for line, _, _ in ARGUMENTS])
def test_whatever_is_given_by_mistake_is_answered_in_one_line(
    line, values, codes, places, run, monkeypatch, genlab_command
):
    root = os.getcwd()
    monkeypatch.chdir(places)
    good = {"run": run, "image": places / "image.png", "long": "x" * 300}
    before = sorted(places.rglob("*"))
    for value in values:
        if value == "closed.png" and os.access(places / value, os.R_OK):
            continue  # root may read everything
        given = [value if word == "VALUE" else word for word in line.split()]
        if line.startswith("bench") and "--experiments" not in line:
            given += ["--experiments", f"{root}/experiments"]
        code, _, error = genlab_command(*(word.format(**good) for word in given))
        said = [text for text in error.splitlines() if not text.startswith("warning")]
        assert code in codes, (value[:50], error)
        assert 1 <= len(said) <= 3 and said[-1].startswith("genlab: "), (value[:50], error)
        assert len(said[-1]) < 700 and not re.search(r"[\x00-\x1f\u202e]|Errno|Traceback", said[-1]), error
        option = line.split()[line.split().index("VALUE") - 1]
        if option.startswith("--") and value.isprintable() and "{" not in value:
            assert option in said[-1] or value.split(":")[-1][:20] in said[-1], error
        if value == "missing":
            assert re.search(r"there is no|is not there", said[-1], re.IGNORECASE), error
    assert sorted(places.rglob("*")) == before


def test_a_folder_stands_for_its_first_images(places, run, tmp_path, monkeypatch, genlab_command):
    monkeypatch.setattr(arguments, "FOLDER_CAP", 2)
    picture = (places / "image.png").read_bytes()
    for number in range(4):
        (tmp_path / f"{number:03d}.PNG").write_bytes(picture)
    (tmp_path / "000.txt").write_text("no image")
    common = ("--noise", 9, "--steps", 2, "--degrade", "--output", tmp_path / "out")
    code, out, error = genlab_command("restore", run, tmp_path, *common)
    assert code == 0, error
    assert out.count(" dB") == 4 and "000.PNG" in out and "001.PNG" in out and "002.PNG" not in out
    assert "The first 2 of 4 images" in error
    code, _, error = genlab_command("sample", run, "--image", tmp_path)
    assert code == 2 and f"is a folder: name a file in it, such as {tmp_path / '000.PNG'}" in error
