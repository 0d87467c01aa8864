"""Records that are kept with the code, and the tables that are made of them."""

import json
import re
import shutil
from pathlib import Path

import pytest
from comparison_runs import record, write_bench, write_run

from genlab.cli.compare import refreshed
from genlab.errors import StorageError
from genlab.report.comparison import compare
from genlab.report.forms import csv_table, markdown_table
from genlab.report.gather import gather
from genlab.report.page import page
from genlab.runs.folder import Run
from genlab.runs.records import keep_record
from genlab.runs.settings import facts_of

HEAD = "<!-- genlab compare {options} -->\n"
END = "<!-- end of genlab compare -->"
ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "experiments" / "results" / "README.md"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return write_bench(tmp_path_factory.mktemp("bench"))


def test_kept_records_give_the_table_of_their_runs(bench, tmp_path, genlab_command):
    code, out, err = genlab_command("records", bench, "-o", tmp_path / "kept")
    assert code == 0, err
    assert csv_table(compare([tmp_path / "kept"])) == csv_table(compare([bench]))
    num, megabytes = re.fullmatch(r".*kept: (\d+) records, ([\d.]+) MB\n", out).groups()
    files = [file for file in (tmp_path / "kept").rglob("*") if file.is_file()]
    assert int(num) == len(gather([bench]).runs) == len(list(bench.glob("*/*/run.json"))) - 1
    assert "Left out" in err  # the one whose run.json is cut short
    assert float(megabytes) == pytest.approx(sum(file.stat().st_size for file in files) / 1e6, abs=0.006)


def test_a_kept_record_has_evaluations_and_neither_losses_nor_pictures_nor_weights(tmp_path):
    run = Run(write_run(tmp_path, record("a")))
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    kept = keep_record(run, tmp_path / "kept")
    assert kept.path == tmp_path / "kept" / "a" / run.name
    assert {file.name for file in kept.path.iterdir()} == {
        "run.json",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
    }
    lines = kept.metrics_jsonl.read_text().splitlines()
    assert len(lines) == 10 and all("val/fid@797" in line and "train/" not in line for line in lines)
    assert kept.read() == run.read()


def test_the_samples_of_one_run_of_each_experiment_are_kept_where_asked_for(tmp_path, genlab_command):
    for seed in (0, 1):
        write_run(tmp_path / "runs", record("a", seed=seed))
    write_run(tmp_path / "runs", record("b"))
    code, out, err = genlab_command("records", tmp_path / "runs", "-o", tmp_path / "kept", "--samples")
    assert code == 0, err
    kept = [file for file in (tmp_path / "kept").rglob("*") if file.is_file()]
    grids = sorted(str(file.relative_to(tmp_path / "kept")) for file in kept if file.suffix == ".png")
    assert grids and {grid.split("/")[0] for grid in grids} == {"a", "b"}
    assert len({grid.rsplit("/", 2)[0] for grid in grids}) == 2  # of one seed each
    assert all("/samples/samples_" in grid for grid in grids)  # not what `genlab test` drew
    size = sum(file.stat().st_size for file in kept) / 1e6
    assert float(re.search(r"([\d.]+) MB", out)[1]) == pytest.approx(size, abs=0.006)
    assert "<img" in page(compare([tmp_path / "kept"]))


def test_samples_of_an_older_record_go_with_it(tmp_path):
    run = Run(write_run(tmp_path, record("a")))
    grid = f"samples/{next(run.samples.glob('samples_*.png')).name}"
    assert (keep_record(run, tmp_path / "kept", [grid]).path / grid).is_file()
    assert not keep_record(run, tmp_path / "kept").samples.exists()


def test_a_newer_record_takes_the_place_of_the_older_one(tmp_path):
    run = Run(write_run(tmp_path, record("a", fid=2.0)))
    keep_record(run, tmp_path / "kept")
    run.update(parameters=7)
    assert keep_record(run, tmp_path / "kept").read()["parameters"] == 7


def test_records_are_not_kept_on_top_of_their_runs(tmp_path, genlab_command):
    write_run(tmp_path, record("a"))
    code, _, err = genlab_command("records", tmp_path, "-o", tmp_path)
    assert code == 2 and "choose another folder" in err
    assert compare([tmp_path]).rows


def test_a_folder_without_runs_has_no_records_to_keep(tmp_path, genlab_command):
    code, _, err = genlab_command("records", tmp_path, "-o", tmp_path / "kept")
    assert code == 2 and "There are no runs" in err
    assert not (tmp_path / "kept").exists()


def test_a_report_of_kept_records_needs_no_picture(bench, tmp_path, genlab_command):
    genlab_command("records", bench, "-o", tmp_path / "kept")
    text = page(compare([tmp_path / "kept"]))
    assert "dcgan_digits" in text and "<img" not in text


def test_a_table_in_a_file_is_made_anew_and_the_rest_stays(bench, tmp_path, genlab_command):
    file = tmp_path / "README.md"
    head = HEAD.format(options=f"'{bench}' --markdown --columns fid,ms")
    file.write_text(f"# before\n\n{head}of yesterday\n{END}\n\nafter\n{head}{END}\n", encoding="utf-8")
    code, _, err = genlab_command("compare", "--refresh", file)
    assert code == 0, err
    table = markdown_table(compare([bench]), None)
    text = file.read_text(encoding="utf-8")
    assert text.startswith(f"# before\n\n{head}\n| model | FID@797 | ms/sample |\n")
    assert (
        text.count("| dcgan_digits |") == 2 and f"{END}\n\nafter\n{head}" in text and "yesterday" not in text
    )
    assert table.splitlines()[-1] in text  # its remarks, too
    assert refreshed(file) == text


@pytest.mark.parametrize(("file", "num_tables"), [(README, 1), (RESULTS, 2)])
def test_the_tables_in_files_are_those_of_the_records_beside_them(monkeypatch, file, num_tables):
    monkeypatch.chdir(ROOT)
    text = file.read_text(encoding="utf-8")
    assert refreshed(file) == text, f"make it true by: genlab compare --refresh {file.relative_to(ROOT)}"
    (table,) = re.findall(r"<!-- genlab compare .*?-->\n(.*?)<!-- end", text, re.DOTALL)
    assert len(re.findall(r"^\| \w+_digits", table, re.MULTILINE)) == 9 * num_tables
    assert "5/5" in table and "not been tested" not in table


def test_the_readme_is_short_and_says_what_the_whole_comparison_says(monkeypatch):
    short, whole = (file.read_text(encoding="utf-8") for file in (README, RESULTS))
    lines = re.findall(r"<!-- genlab compare .*?-->\n(.*?)<!-- end", short, re.DOTALL)[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    said = [line for line in lines if line.startswith("- ")]
    assert {line.replace("\\|", "").count("|") for line in table} == {7}  # six columns
    assert 3 <= len(said) <= 8 and all(line in whole for line in said if " others have " not in line)


def test_the_facts_of_a_kept_record_are_those_of_its_configuration():
    records = sorted((ROOT / "experiments" / "results").glob("*/*/*/run.json"))
    assert len(records) == 45
    for path in records:
        kept = json.loads(path.read_text(encoding="utf-8"))
        assert kept.items() >= facts_of((path.parent / "config.yaml").read_text(encoding="utf-8")).items()
        share = 2 if "first_stage" in kept else 1  # two stages halve what the bench allows
        assert kept["budget"] == {"examples": None, "seconds": 90.0 / share, "evaluations": 8}
        assert kept["bench"]["budget"] == {"examples": None, "seconds": 90.0}


LINKED = ("config.yaml", "environment.json", "metrics.jsonl", "run.json", "samples", "speed")


@pytest.mark.fault(61)
@pytest.mark.parametrize("command", ["records", "report", "compare", "runs"])
def test_runs_with_a_link_out_of_their_folder_are_named_and_left_out(command, tmp_path, genlab_command):
    """Whatever reads runs: what a link points to may be private, and copies and reports are passed on."""
    write_run(tmp_path / "runs", record("good"))
    for number, name in enumerate(LINKED):
        run = write_run(tmp_path / "runs", record(f"odd{number}"))
        private, place = tmp_path / f"private{number}", run / name
        if place.exists():
            place.rename(private)
        else:
            private.mkdir()
        place.symlink_to(private)
    output = {"records": ("-o", tmp_path / "kept"), "report": ("-o", tmp_path / "r.html")}
    code, out, error = genlab_command(command, tmp_path / "runs", *output.get(command, ()))
    assert code == 0, error
    left_out = [line for line in (out + error).splitlines() if "Left out" in line]
    read = ["run.json"] if command == "runs" else LINKED  # a list reads nothing else
    assert len(left_out) == len(read)
    for name in read:
        place = f"odd{LINKED.index(name)}/{run.name}/{name}"
        assert any(f"{place} leads out of the run's folder by a link" in line for line in left_out)
    if command == "records":
        assert [path.parent.name for path in (tmp_path / "kept").glob("*/*")] == ["good"]


def test_a_run_that_is_itself_a_link_is_a_run(tmp_path, genlab_command):
    run = write_run(tmp_path / "disk", record("far"))
    (tmp_path / "runs" / "far").mkdir(parents=True)
    (tmp_path / "runs" / "far" / "linked").symlink_to(run)
    code, out, error = genlab_command("compare", tmp_path / "runs")
    assert code == 0 and "far" in out and "Left out" not in out, error
    assert Run(tmp_path / "runs" / "far" / "linked").output("samples").is_dir()


@pytest.mark.fault(61)
@pytest.mark.parametrize("link", ["samples", "samples/seed0", "samples/seed0/grid.png"])
def test_nothing_is_written_through_a_link_of_a_run(link, tmp_path):
    run = Run(write_run(tmp_path, record("a"), pictures=False))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = run.path / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(elsewhere / "grid.png" if place.suffix else elsewhere)
    with pytest.raises(ValueError, match="leads out of the run's folder by a link"):
        run.output("samples", "seed0")
    place.unlink()
    (run.path / "b").mkdir()
    place.symlink_to(run.path / "b")  # within the run
    assert run.output("samples", "seed0").is_relative_to(run.path)


def test_a_folder_that_may_not_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    run = Run(write_run(tmp_path, record("a"), pictures=False))
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(StorageError, match=r"may not be written.*--output"):
        run.output("samples", "seed0")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_copied_run_is_found_wherever_it_lies(depth, tmp_path, genlab_command):
    run = write_run(tmp_path / "outputs", record("original"))
    copy = shutil.copytree(run, tmp_path / "copies" / "a" / "copy")
    root = (copy, copy.parent, copy.parent.parent)[depth]
    for command in ("runs", "compare"):
        code, out, error = genlab_command(command, root)
        assert code == 0 and "original" in out, error


def test_a_grid_that_is_cut_short_is_named_and_left_out_of_the_film(tmp_path, genlab_command):
    run = Run(write_run(tmp_path, record("a")))
    grids = sorted(run.samples.glob("*.png"))
    grids[1].write_bytes(grids[1].read_bytes()[:200])
    (run.samples / "samples_0abc.png").write_text("not a grid")
    code, out, error = genlab_command("samples", run.path, "--film")
    assert code == 0 and "2 frames" in error and out.strip().endswith("training.gif")
    (line,) = (line for line in error.splitlines() if line.startswith("! "))
    assert grids[1].name in line and "is left out" in line
    for grid in grids:
        grid.write_bytes(b"")
    code, _, error = genlab_command("samples", run.path, "--film")
    assert code == 2 and "No grid in" in error and error.count("\n") == 1


def test_a_file_without_a_place_for_a_table_is_told_how_to_make_one(tmp_path, genlab_command):
    file = tmp_path / "README.md"
    file.write_text(f"# nothing\n{HEAD.format(options='.')}\n")  # begun and not ended
    code, _, err = genlab_command("compare", "--refresh", file)
    assert code == 2 and "<!-- end of genlab compare -->" in err
    assert file.read_text() == f"# nothing\n{HEAD.format(options='.')}\n"
