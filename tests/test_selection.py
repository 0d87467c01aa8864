"""Runs chosen by what they are, sorted, tagged, and removed where that is safe."""

import io
import sys

import pytest
from comparison_runs import record, write_run

from genlab.report.comparison import compare
from genlab.report.gather import gather
from genlab.report.page import page
from genlab.runs.folder import NotARun, Run, create_run, list_runs, outputs_root
from genlab.runs.lock import RunIsLive
from genlab.runs.selection import Described, Wanted, in_order, remove, tag

MADE = (
    ("dcgan_digits", "GAN", "digits", "finished", 3.0),
    ("dcgan_celeba", "GAN", "celeba", "failed", None),
    ("vae_digits", "VAE", "digits", "finished", 1.0),
)


@pytest.fixture
def three():
    """A run of each of `MADE`, by its experiment."""
    for day, (experiment, family, data, status, fid) in enumerate(MADE, start=1):
        run = create_run(experiment, name=f"day{day}")
        test = {"values": {"fid@797": fid, "recall@797": 1.0 / fid}} if fid else None
        run.update(status=status, family=family, data={"name": data}, test=test)
        run.replace(created=f"2026-01-0{day}", examples_seen=1000 * (4 - day), error="CUDA error" * (not fid))
    return {run.experiment: run for run in list_runs()}


def names(runs):
    return [one.experiment for one in runs]


def described():
    return [Described.of(run) for run in list_runs()]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), ["dcgan_digits", "dcgan_celeba", "vae_digits"]),
        (Wanted(experiment="dcgan_*"), ["dcgan_digits", "dcgan_celeba"]),
        (Wanted(family="GAN", data="digits"), ["dcgan_digits"]),
        (Wanted(data="digits"), ["dcgan_digits", "vae_digits"]),
        (Wanted(status="failed"), ["dcgan_celeba"]),
        (Wanted(status="diverged"), []),
        (Wanted(words=("cuda", "GAN")), ["dcgan_celeba"]),
        (Wanted(words=("day3",)), ["vae_digits"]),
        (Wanted(tagged=("good",)), ["vae_digits"]),
        (Wanted(tagged=("good", "paper")), []),
    ],
)
def test_conditions_are_joined_by_and(wanted, expected, three):
    tag(three["vae_digits"], ["good"])
    tag(three["dcgan_digits"], ["paper"])
    assert names(wanted.among(described())) == expected


@pytest.mark.parametrize("option", ["experiment", "family", "data"])
def test_a_value_that_no_run_has_is_answered_by_those_there_are(option, three):
    with pytest.raises(ValueError, match=f"--{option}: no run has 'digit'"):
        Wanted(**{option: "digit"}).among(described())


def test_scores_sort_the_best_first_and_what_has_none_last(three):
    runs = described()
    assert names(in_order(runs, "fid")) == ["vae_digits", "dcgan_digits", "dcgan_celeba"]
    assert names(in_order(runs, "examples_seen")) == ["vae_digits", "dcgan_celeba", "dcgan_digits"]
    assert names(in_order(runs, "experiment")) == ["dcgan_celeba", "dcgan_digits", "vae_digits"]
    three["dcgan_celeba"].replace(test={"values": {"psnr": 20.0}})
    three["vae_digits"].replace(test={"values": {"psnr": 30.0}})
    assert names(in_order(described(), "psnr")) == ["vae_digits", "dcgan_celeba", "dcgan_digits"]
    assert names(in_order(runs, "recall")) == ["vae_digits", "dcgan_digits", "dcgan_celeba"]
    with pytest.raises(ValueError, match="Did you mean 'examples_seen'"):
        in_order(runs, "example_seen")


def test_of_a_score_whose_better_side_is_unknown_that_is_said(three, genlab_command):
    for experiment, energy in (("dcgan_digits", 3.0), ("dcgan_celeba", 1.0), ("vae_digits", 2.0)):
        three[experiment].replace(test={"values": {"energy": energy, "fid": 1.0}})
    assert names(in_order(described(), "energy")) == ["dcgan_celeba", "vae_digits", "dcgan_digits"]
    _, _, error = genlab_command("runs", "--sort", "energy")
    assert error == "! It is not known which side of energy is better: the lowest comes first.\n"
    assert [genlab_command("runs", "--sort", key)[2] for key in ("fid", "created")] == ["", ""]


def test_tags_are_kept_beside_what_the_record_says(three):
    run = three["vae_digits"]
    before = run.read()
    assert tag(run, ["good", "paper"]) == ["good", "paper"]
    assert tag(run, ["zoo"], ["paper"]) == ["good", "zoo"]
    run.update(status="running")
    assert run.read() == {**before, "status": "running", "tags": ["good", "zoo"]}
    with pytest.raises(ValueError, match="no tag 'paper'; it has: good, zoo"):
        tag(run, removed=["paper"])


def test_tags_that_are_no_list_of_texts_are_no_record(three):
    run = three["vae_digits"]
    run.record.write_text(run.record.read_text().replace("{", '{"tags": "good", ', 1))
    with pytest.raises(NotARun, match="tags must be a list"):
        run.read()


def test_only_tagged_runs_are_compared_and_reported(tmp_path):
    for seed in range(3):
        write_run(tmp_path, record("a", seed=seed))
    chosen, *_ = list_runs(tmp_path)
    tag(chosen, ["keep"])
    assert [one.run.path for one in gather([tmp_path], ["keep"]).runs] == [chosen.path]
    assert len(gather([tmp_path]).runs) == 3
    assert "keep" in page(compare([tmp_path], tagged=["keep"]))
    with pytest.raises(ValueError, match="has the tags other"):
        compare([tmp_path], tagged=["other"])


def test_a_run_that_trains_stays(three):
    run = three["dcgan_digits"]
    with run.lock(), pytest.raises(NotARun, match="a process trains in it"):
        remove(run)
    assert run.record.exists()


def test_a_training_that_begins_after_the_question_keeps_its_run(three, monkeypatch):
    run = three["dcgan_digits"]
    monkeypatch.setattr("genlab.runs.selection.why_not_removable", lambda _: "")
    with run.lock(), pytest.raises(RunIsLive):
        remove(run)
    assert run.record.exists()


def test_nothing_outside_of_the_outputs_is_removed(three, tmp_path):
    elsewhere = create_run("a", tmp_path / "elsewhere")
    link = outputs_root() / "a" / "linked"
    link.parent.mkdir()
    link.symlink_to(elsewhere.path)
    through = outputs_root() / "through"
    through.symlink_to(elsewhere.path.parent)
    for run in (elsewhere, Run(link), Run(through / elsewhere.name)):
        with pytest.raises(NotARun, match="is not removed"):
            remove(run)
    assert elsewhere.record.exists()


def test_neither_a_link_to_a_run_nor_the_folder_of_all_outputs_is_removed(three, monkeypatch):
    run = three["vae_digits"]
    link = run.path.with_name("link")
    link.symlink_to(run.path)
    with pytest.raises(NotARun, match="it is a link"):
        remove(Run(link))
    monkeypatch.setenv("GENLAB_OUTPUTS", str(run.path))
    with pytest.raises(NotARun, match="does not lie in"):
        remove(run)
    assert run.record.exists()


def test_what_a_removed_run_links_to_stays(three, tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("somebody's")
    run = three["vae_digits"]
    (run.path / "link").symlink_to(kept)
    (run.path / "folder").symlink_to(tmp_path)
    remove(run)
    assert kept.read_text() == "somebody's"
    assert not run.path.parent.exists()
    assert len(list_runs()) == 2


def test_a_folder_without_a_record_is_not_removed(three):
    folder = outputs_root() / "notes"
    folder.mkdir()
    with pytest.raises(NotARun):
        remove(Run(folder))
    assert folder.is_dir()


# The command


def test_the_list_shows_what_was_asked_for_in_the_order_asked_for(three, genlab_command):
    code, out, _ = genlab_command("runs", "--data", "digits", "--sort", "fid")
    lines = out.splitlines()[1:]
    assert code == 0
    assert [line.split()[0] for line in lines] == ["vae_digits", "dcgan_digits"]
    assert "tags" not in out
    genlab_command("runs", three["vae_digits"].path, "--tag", "good")
    assert "good" in genlab_command("runs")[1]


def test_tags_come_and_go_by_the_command(three, genlab_command):
    run = three["vae_digits"]
    assert genlab_command("runs", run.path, "--tag", "good", "old")[0] == 0
    assert genlab_command("runs", run.path, "--tag", "new", "--untag", "old")[0] == 0
    assert run.read()["tags"] == ["good", "new"]
    assert [Described.of(other).tags for other in list_runs()].count([]) == 2


@pytest.mark.parametrize("option", [("--delete", "--yes"), ("--tag", "good")])
def test_all_runs_are_changed_by_no_slip(option, three, genlab_command):
    code, _, error = genlab_command("runs", *option)
    assert code == 2
    assert "which runs" in error
    assert len(list_runs()) == 3
    assert not any(run.read().get("tags") for run in list_runs())


def test_removing_asks_and_takes_only_a_yes(three, genlab_command, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for answer, left in (("\n", 3), ("n\n", 3), ("nay\n", 3), ("y\n", 2)):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        code, _, error = genlab_command("runs", "--status", "failed", "--delete")
        assert (code, len(list_runs())) == (0, left)
        assert "dcgan_celeba" in error
    assert "dcgan_celeba" not in names(described())


def test_where_nobody_can_answer_removing_needs_a_yes(three, genlab_command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, _, error = genlab_command("runs", "--status", "failed", "--delete")
    assert (code, len(list_runs())) == (2, 3)
    assert "--yes" in error


def test_a_live_run_among_those_to_be_removed_is_named_and_the_others_go(three, genlab_command):
    with three["dcgan_digits"].lock():
        code, out, error = genlab_command("runs", "--data", "digits", "--delete", "--yes")
    assert code == 2
    assert "dcgan_digits" in error
    assert "vae_digits" in out
    assert sorted(names(described())) == ["dcgan_celeba", "dcgan_digits"]


def test_runs_elsewhere_are_listed_and_not_removed(three, genlab_command, tmp_path):
    run = create_run("a", tmp_path / "elsewhere")
    code, _, error = genlab_command("runs", run.path, "--delete", "--yes")
    assert code == 2
    assert "does not lie in" in error
    assert run.record.exists()
    assert "a " in genlab_command("runs", tmp_path / "elsewhere")[1]
