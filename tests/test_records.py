"""Records that are kept with the code, and the tables that are made of them."""

import json
import re
from pathlib import Path

import pytest
from comparison_runs import record, write_bench, write_run

from genlab.cli.compare import refreshed
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
    file.write_text(f"# before\n\n{head}old\n{END}\n\nafter\n{head}{END}\n", encoding="utf-8")
    code, _, err = genlab_command("compare", "--refresh", file)
    assert code == 0, err
    table = markdown_table(compare([bench]), None)
    text = file.read_text(encoding="utf-8")
    assert text.startswith(f"# before\n\n{head}\n| model | FID@797 | ms/sample |\n")
    assert text.count("| dcgan_digits |") == 2 and f"{END}\n\nafter\n{head}" in text and "old" not in text
    assert table.splitlines()[-1] in text  # its remarks, too
    assert refreshed(file) == text


@pytest.mark.parametrize(("file", "num_tables"), [(README, 1), (RESULTS, 2)])
def test_the_tables_in_files_are_those_of_the_records_beside_them(monkeypatch, file, num_tables):
    monkeypatch.chdir(ROOT)
    text = file.read_text(encoding="utf-8")
    assert refreshed(file) == text, f"make it true by: genlab compare --refresh {file.relative_to(ROOT)}"
    (table,) = re.findall(r"<!-- genlab compare .*?-->\n(.*?)<!-- end", text, re.DOTALL)
    assert len(re.findall(r"^\| \w+_digits", table, re.MULTILINE)) == 12 * num_tables  # 12 ways to sample
    assert "5/5" in table and "not been tested" not in table


def test_the_readme_is_short_and_says_what_the_whole_comparison_says(monkeypatch):
    short, whole = (file.read_text(encoding="utf-8") for file in (README, RESULTS))
    lines = re.findall(r"<!-- genlab compare .*?-->\n(.*?)<!-- end", short, re.DOTALL)[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    said = [line for line in lines if line.startswith("- ")]
    assert {line.replace("\\|", "").count("|") for line in table} == {7}  # six columns
    assert 3 <= len(said) <= 5 and all(line in whole for line in said if "The others" not in line)


def test_the_facts_of_a_kept_record_are_those_of_its_configuration():
    records = sorted((ROOT / "experiments" / "results").glob("*/*/*/run.json"))
    assert len(records) == 50
    for path in records:
        kept = json.loads(path.read_text(encoding="utf-8"))
        assert kept.items() >= facts_of((path.parent / "config.yaml").read_text(encoding="utf-8")).items()
        assert kept["budget"] == {**kept["bench"]["budget"], "evaluations": 8}


def test_a_file_without_a_place_for_a_table_is_told_how_to_make_one(tmp_path, genlab_command):
    file = tmp_path / "README.md"
    file.write_text(f"# nothing\n{HEAD.format(options='.')}\n")  # begun and not ended
    code, _, err = genlab_command("compare", "--refresh", file)
    assert code == 2 and "<!-- end of genlab compare -->" in err
    assert file.read_text() == f"# nothing\n{HEAD.format(options='.')}\n"
