"""The report as a page: what its text refers to, its charts and pictures, and how it behaves in a browser."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pytest
from comparison_runs import PAIRS, copies, draw, entry, record, scored, write_bench, write_run
from markupsafe import Markup
from PIL import Image

from genlab.report import chart, curves, points
from genlab.report.comparison import compare
from genlab.report.galleries import films
from genlab.report.page import breakable, page, printable
from genlab.report.pictures import LONGEST_TEXT, LOSSLESS_UP_TO, Album, encoded
from genlab.report.points import frontier
from genlab.runs.folder import Run
from genlab.runs.headline import named


class Page(HTMLParser):
    """What a browser would make of the page: elements, ids, links, texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.unclosed = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "br", "link", "hr", "col", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unclosed.append(tag)

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return write_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def comparison(bench):
    return compare([bench])


@pytest.fixture(scope="module")
def html(comparison):
    return page(comparison)


SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page of runs whose every text would be a script, and one of whose pictures comes twice."""
    root = tmp_path_factory.mktemp("hostile")
    fields = {
        "family": SCRIPT,
        "error": SCRIPT,
        "device": f'"><img src=x onerror={SCRIPT}>',
        "data.name": SCRIPT,
        "data.preprocessing": {SCRIPT: SCRIPT},
        "precision": SCRIPT,
        "test.copies": {**copies(), "threshold": SCRIPT},
        "test.latent": {"type": SCRIPT, "disentanglement": {SCRIPT: 0.1}},
        "test.arguments": [SCRIPT],
        "test.checkpoint_digest": SCRIPT,
        "test.pictures": {"interpolation": f"{SCRIPT}.png", "failures": f"../{SCRIPT}.png", SCRIPT: "a.txt"},
        "variants": {SCRIPT: entry(2.0, **{"protocol.split": SCRIPT})},
        "health.flags": [{"examples_seen": 7, "problem": SCRIPT}],
    }
    for seed in range(2):
        folder = write_run(root, record(SCRIPT, seed=seed, **fields), pictures=False)
        (folder / "a.txt").write_text(f"</pre>{SCRIPT}")
        (folder / "config.yaml").write_text(f"seed_everything: {seed}\nname: '</pre>{SCRIPT}'\n")
        (folder / "environment.json").write_text(
            json.dumps({"command": [SCRIPT], "cpu": SCRIPT, "packages": {SCRIPT: SCRIPT}})
        )
        (folder / "speed.json").write_text(
            json.dumps({"rows": [{"sampler": SCRIPT, "nfe": n, "fid": 1.0} for n in (1, 2)]})
        )
    shown = {"failures": "test/f.png", "interpolation": "test/i.png"}
    other = record(
        "<img src=x onerror=alert(1)>", status="diverged", error=SCRIPT, **{"test.pictures": shown}
    )
    folder = write_run(root, other)
    shutil.copy(folder / "test" / "i.png", folder / "test" / "f.png")
    return page(compare([root]))


# The page as a text


def test_the_page_refers_to_nothing_outside_itself(html):
    parsed = Page(html)
    for name, attributes in parsed.elements:
        for key in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            value = attributes.get(key)
            if value is not None:
                assert value.startswith(("#", "data:image/")), (name, key, value[:80])
    outside = re.compile(r"https?:|//|url\((?!#)|@import")
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.S)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert not outside.search(style)
    assert not [value for _, a in parsed.elements for value in a.values() if outside.search(f"{value}"[:99])]
    assert not re.search(r"https?:|fetch\(|XMLHttp|import\(|eval\(|innerHTML", script)
    (policy,) = [a["content"] for a in parsed.all("meta") if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_anchor_and_label_resolves_and_no_id_comes_twice(html):
    parsed = Page(html)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    keys = ("aria-labelledby", "aria-describedby", "for", "data-copy", "href", "xlink:href", "clip-path")
    found = [value for _, a in parsed.elements for key in keys if (value := a.get(key))]
    references = {value.removeprefix("url(").removesuffix(")").removeprefix("#") for value in found}
    assert len(references) > 20
    assert references <= set(ids)


def test_every_element_is_closed_and_every_picture_described(html):
    parsed = Page(html)
    assert (parsed.unclosed, parsed.open) == ([], [])
    assert all(image.get("alt") for image in parsed.all("img"))
    charts = parsed.all("svg")
    assert len(charts) >= 10
    assert all(one.get("role") == "img" and one.get("aria-label") and one.get("viewbox") for one in charts)


def test_the_verdict_and_the_fairness_come_first(html):
    sections = [a["id"] for a in Page(html).all("section")]
    assert sections[:3] == ["verdict", "fairness", "table"]
    assert " ".join(sections[3:]) == (
        "adjectives time examples steps speed stability samples interpolations reconstructions copies "
        "failures data provenance"
    )
    assert [a["href"] for a in Page(html).all("a")][1:] == [f"#{name}" for name in sections]


@pytest.mark.fault(57, 61)
def test_a_run_named_like_a_script_is_text(hostile):
    parsed = Page(hostile)
    assert len(parsed.all("script")) == 1
    assert not re.search(r"<script>alert|<img src=x", hostile)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in hostile
    assert not [a for _, a in parsed.elements for key in a if key.startswith("on")]
    assert not [a for _, a in parsed.elements if "<script>" in a.get("id", "")]


@pytest.mark.fault(57)
def test_names_break_between_words_and_are_escaped():
    assert breakable("a_b/c<i>") == "a_<wbr>b/<wbr>c&lt;i&gt;"
    shown = printable("a\x1b[2J\tb\n\x00\u2028é\u202e", keep="\n\t")
    assert shown == "a\N{REPLACEMENT CHARACTER}[2J\tb\n" + "\ufffd" * 2 + "é\ufffd"


def test_the_page_names_commands_versions_and_hashes(html):
    for text in (
        "experiments/dcgan_digits.yaml",
        "torch 2.15.0",
        "d455644993ac4781",
        "0123456789abcdef",
        "5d67a56a",
    ):
        assert text in html


@pytest.mark.fault(62)
def test_no_private_path_of_the_machine_is_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path, record("a", test={}), curve=[], pictures=False)
    text = page(compare([tmp_path]))
    assert "has not been tested: genlab test ~/a/" in text and str(tmp_path) not in text


def test_the_worst_case_of_points_without_pictures_makes_a_page(tmp_path):
    write_run(tmp_path, record("a", test={}, status="diverged"), curve=[], pictures=False, config=False)
    text = page(compare([tmp_path]))
    assert "0/1, 1 diverged" in text
    assert Page(text).unclosed == []


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the drawings, where a test is about what stands beside them."""
    monkeypatch.setattr(chart, "drawn", lambda *_: Markup(""))


@pytest.mark.fault(61)
def test_records_of_other_shapes_make_a_page_or_are_named(tmp_path, undrawn):
    odd = (None, {}, 5, "text", [1, None], {"a": {"b": None}}, {"fid@797": "nan"})
    fields = [
        "test",
        "test.values",
        "test.protocol",
        "variants",
        "health",
        "bench",
        "data",
        "spec",
        "test.speed",
        "test.copies",
    ]
    for value in odd:
        for field in fields:
            made = record(f"odd_{field}{odd.index(value)}", **{field: value})
            write_run(tmp_path, made, curve=[2.0], pictures=False)
    comparison = compare([tmp_path])
    left_out = [note for note in comparison.notes if "Left out" in note]
    assert len(comparison.all_rows) > 20 and len(left_out) > 20
    text = page(comparison)
    assert all(f"odd_{field}{number}" in text for field in fields for number in range(len(odd)))


def test_the_command_writes_the_same_page_in_another_process_without_torch(bench, html, tmp_path):
    code = (
        "import sys; from genlab.cli.main import main; code = main(['report', *sys.argv[1:]]);"
        "print({'torch', 'pytorch_lightning'} & sys.modules.keys(), code)"
    )
    command = [sys.executable, "-c", code, str(bench), "-o", str(tmp_path / "report.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "report.html" in done.stdout and done.stdout.splitlines()[-1] == "set() 0"
    assert "Left out" in done.stderr and "has not been tested" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").stat().st_size < 2e6
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html


def test_a_report_in_a_folder_that_is_missing_is_an_error(bench, tmp_path, genlab_command):
    code, _, err = genlab_command("report", bench, "-o", tmp_path / "no" / "report.html")
    assert code == 2
    assert "make it first" in err


# Pictures and texts in the page


def one_run(tmp_path, name="a.png", side=66):
    folder = write_run(tmp_path, record("a"), pictures=False)
    draw(folder / name, np.random.default_rng(0), 0.5, side)
    return Run(folder)


def test_pictures_keep_their_pixels_and_lose_their_metadata(tmp_path):
    run = one_run(tmp_path)
    picture = Image.open(run.path / "a.png")
    from PIL.PngImagePlugin import PngInfo

    secret = PngInfo()
    secret.add_text("Author", "somebody")
    picture.save(run.path / "b.png", pnginfo=secret)
    data, kind, size = encoded(run.path / "b.png")
    assert (kind, size) == ("png", (66, 66))
    assert b"somebody" not in data
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(picture))


def test_a_picture_of_few_colours_keeps_them_exactly(tmp_path):
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (100, 3), dtype=np.uint8)
    pixels = palette[rng.integers(0, 100, (40, 40))]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data, _, _ = encoded(tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), pixels)


def test_a_photograph_is_stored_with_loss_and_small(tmp_path):
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    rough.resize((2000, 200), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    data, kind, size = encoded(tmp_path / "a.png")
    assert (kind, size) == ("webp", (1400, 140))
    assert len(data) < (tmp_path / "a.png").stat().st_size / 4
    assert (tmp_path / "a.png").stat().st_size > LOSSLESS_UP_TO


def test_the_same_picture_is_stored_once(tmp_path):
    run = one_run(tmp_path)
    shutil.copy(run.path / "a.png", run.path / "b.png")
    album = Album()
    first, second = album.shown(run, "a.png", "first"), album.shown(run, "b.png", "second")
    assert first.id == second.id == "picture0"
    assert first.source.startswith("data:image/png;base64,") and second.source == ""


@pytest.mark.parametrize(
    "path", ["../../secret.png", "/etc/hostname", "missing.png", "damaged.png", "run.json", 7, "../a.txt"]
)
def test_a_picture_that_cannot_be_shown_is_named(tmp_path, path):
    run = one_run(tmp_path)
    draw(tmp_path / "secret.png", np.random.default_rng(0), 1.0)
    (run.path.parent / "a.txt").write_text("secret")
    (run.path / "damaged.png").write_bytes((run.path / "a.png").read_bytes()[:100])
    album = Album()
    assert album.shown(run, path, "x") is None
    assert len(album.problems) == 1
    assert "is left out" in album.problems[0]


@pytest.mark.fault(61)
def test_a_link_out_of_the_run_is_not_followed(tmp_path):
    run = one_run(tmp_path)
    draw(tmp_path / "secret.png", np.random.default_rng(0), 1.0)
    (run.path / "link.png").symlink_to(tmp_path / "secret.png")
    assert Album().shown(run, "link.png", "x") is None


def test_long_trainings_are_thinned_from_first_to_last(tmp_path):
    folder = write_run(tmp_path, record("a"), pictures=False)
    for n in range(40):
        draw(folder / "samples" / f"samples_{1000 * n:010d}.png", np.random.default_rng(n), 0.5, 8)
    ((name, frames),) = films(compare([tmp_path]), Album())
    assert (name, len(frames)) == ("a", 12)
    assert (frames[0].seen, frames[-1].seen) == ("0 img", "39,000 img")
    assert [frame.share for frame in frames] == sorted(frame.share for frame in frames)
    assert (frames[0].share, frames[-1].share) == (0.0, 1.0)


def test_samples_that_are_texts_are_shown_as_texts(tmp_path, undrawn):
    spec = {"name": "verse", "shape": [32], "levels": 64}
    made = record("lines", spec=spec, **{"test.pictures": {"continuations": "test/continuations.txt"}})
    folder = write_run(tmp_path, made, curve=[], pictures=False)
    for path, text in {"samples/samples_0000.txt": "qzx\n", "samples/samples_0640.txt": "a <b> rose"}.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    (folder / "test").mkdir()
    (folder / "test" / "continuations.txt").write_text("Shall I " * LONGEST_TEXT)
    text = page(compare([tmp_path]))
    frames = [a for a in Page(text).all("pre") if "data-share" in a]
    assert [(a["data-seen"], "hidden" in a) for a in frames] == [("0 tok", True), ("640 tok", False)]
    assert ">a &lt;b&gt; rose</pre>" in text and ">qzx\n</pre>" in text
    (others,) = re.findall(r'<section id="others".*?</section>', text, re.S)
    assert "<h3>continuations</h3>" in others and "Shall I …</pre>" in others
    assert LONGEST_TEXT < len(others) < LONGEST_TEXT + 1000


# Several scores in one page


@pytest.fixture
def mixed(tmp_path):
    """Two GANs, two models of text, one of pairs that was not scored while it trained."""
    for n, name in enumerate(("gan_digits", "dcgan_digits")):
        write_run(tmp_path, record(name, fid=1.0 + n), [90.0, 1.0 + n], pictures=False)
    for n, name in enumerate(("gpt_plays", "lstm_plays")):
        made = scored(name, "Autoregressive", 0, {"bits_per_byte": 1.5 + n, "perplexity": 3.0 + n})
        write_run(tmp_path, made, [5.0, 1.5 + n], pictures=False, score="bits_per_byte")
    made = scored("pix2pix_edges", "Pix2Pix", 0, {"psnr": 22.0, "ssim": 0.8}, spec=PAIRS)
    write_run(tmp_path, made, curve=[], pictures=False)
    return compare([tmp_path])


def sections(text):
    return dict(re.findall(r'<section id="(\w+)"(.*?)</section>', text, re.S))


ABOUT = ["FID on digits", "bits/byte on plays", "PSNR on edges"]


def test_each_score_has_its_own_verdict_table_and_charts(mixed, undrawn):
    found = sections(page(mixed))
    titles = {name: re.findall("<h3>(.*?)</h3>", body) for name, body in found.items()}
    assert titles["verdict"] == titles["table"] == titles["stability"] == ABOUT
    assert titles["time"] == titles["examples"] == ABOUT[:2]  # the pairs were not scored while they trained
    leads = re.findall('<p class="lead">(.*?)</p>', found["verdict"])
    assert [lead.split()[0] for lead in leads] == ["gan_digits", "gpt_plays", "pix2pix_edges"]
    assert re.findall(r'<th scope="col">(\w+ seen)', found["examples"]) == ["images seen", "tokens seen"]
    heads = [re.findall(r'<button type="button">(.*?)<', one) for one in found["table"].split("<h3>")[1:]]
    assert [head[3] for head in heads] == ["FID@797", "bits/byte", "PSNR dB"]
    heads = [re.findall('class="number">([^<]+ last)<', one) for one in found["stability"].split("<h3>")[1:]]
    assert heads == [["FID last"], ["bits/byte last"], []]


def test_rows_that_lead_with_another_score_are_not_said_to_be_apart(mixed, undrawn):
    found = sections(page(mixed))
    assert "not comparable" not in found["fairness"] + found["table"]
    assert "of the logarithm for FID." in found["fairness"]
    assert (
        "finds no difference of their log FID, bits/byte or PSNR, with Holm's correction" in found["fairness"]
    )
    assert all(f"Held equal: {about}" in found["fairness"] for about in ABOUT)


def test_a_row_that_cannot_be_compared_stands_in_its_group(mixed, tmp_path, undrawn):
    other = {"test.protocol": {"likelihood": {"kind": "<=", "split": "val"}}}
    made = scored("rnn_plays", "New", 0, {"bits_per_byte": 1.0}, **other)
    write_run(tmp_path, made, curve=[1.0], pictures=False, score="bits_per_byte")
    found = sections(page(compare([tmp_path])))
    texts, images, pairs = found["table"].split("<h3>")[1:]  # the largest group first
    assert 'class="apart"' in texts and 'class="apart"' not in images + pairs
    assert "rnn_<wbr>plays" in texts and "rnn_<wbr>plays" not in images + pairs
    (apart,) = re.findall(r"Set apart, not comparable.*", found["fairness"])
    assert "rnn_plays" in apart and "gpt_plays" not in apart


def test_drawings_of_several_scores_share_no_name_and_models_no_colour(mixed, monkeypatch):
    names = []
    monkeypatch.setattr(chart, "drawn", lambda name, *_: Markup(names.append(name) or ""))
    parsed = Page(page(mixed))
    assert len(names) == len(set(names)) == 2 * (3 + 2 + 2 + 1 + 2)  # verdict, time, examples, speed, seeds
    labels = [a["aria-label"] for _, a in parsed.elements if a.get("role") == "region"]
    assert len(labels) == len(set(labels)) > 8
    led, places = points.by_evaluations(mixed), points.place_of(mixed)
    charts = [curves.against_time(headline, rows, places) for headline, rows in led.items()]
    assert sorted(line.colour for found in filter(None, charts) for line in found.legend) == [0, 1, 2, 3]


def test_trainings_are_drawn_by_the_score_of_their_evaluations(tmp_path):
    made = {"gan": record("gan"), "pairs": scored("pairs", "New", 0, {"psnr": 22.0}, spec=PAIRS)}
    for one in made.values():
        write_run(tmp_path, one, [3.0, 2.0], pictures=False, score="fid@797")
    write_run(tmp_path, record("silent"), curve=[], pictures=False)
    found = points.by_evaluations(compare([tmp_path]))
    assert {led.key: [row.name for row in rows] for led, rows in found.items()} == {
        "fid": ["gan", "silent", "pairs"]
    }


def test_a_score_of_zero_has_a_place_on_a_linear_axis_alone():
    assert points.can_be_drawn(0.0, named("bleu")) and points.can_be_drawn(-1.0, named("bits_per_dim"))
    assert not points.can_be_drawn(0.0, named("fid"))


# Charts


def place_of_marks(svg):
    """Where marks are drawn, in drawing units, with their colours."""
    found = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', svg)
    return [
        (float(x), float(y), (re.search(r"fill: var\(--(c\d)\)", style) or [None, None])[1])
        for x, y, style in found
    ]


def drawn_points(xs, ys, **scales):
    def put(axes):
        chart.logarithmic(axes, **scales)
        axes.plot(xs, ys, **chart.points_of(0))

    return [(x, y) for x, y, _ in place_of_marks(chart.drawn("a", "title", (400, 300), put))]


def test_equal_steps_are_equally_long_and_equal_factors_on_a_logarithmic_axis():
    (x0, y0), (x1, y1), (x2, y2) = drawn_points([1, 10, 100], [0.0, 0.5, 1.0], x=True)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.05) and x1 > x0 + 50
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.05) and y1 < y0 - 50  # upwards


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[1.0], [0.5, 0.50001], [1e-6, 1e6], [3.0, 7.0, 11.0], [0.11, 85.0]])
def test_ticks_are_few_and_tell_where_they_stand(values, log):
    def put(axes):
        chart.logarithmic(axes, x=log)
        axes.plot(values, [0] * len(values), **chart.points_of(0))
        axes.set_yticks([])

    svg = chart.drawn("a", "title", (400, 300), put)
    found = re.findall(r'x="([\d.]+)"[^>]*>([^<]+)</text>', svg)
    factors = {"k": 1e3, "M": 1e6, "G": 1e9}
    ticks = [(float(x), float(t.rstrip("kMG")) * factors.get(t[-1], 1)) for x, t in found]
    assert 1 <= len(ticks) <= 9
    if values == [3.0, 7.0, 11.0] and not log:
        marks = [x for x, _, _ in place_of_marks(svg)]
        slope = (marks[-1] - marks[0]) / 8
        assert [x for x, _ in ticks] == pytest.approx([marks[0] + slope * (t - 3) for _, t in ticks], abs=0.1)


def test_a_chart_has_a_name_and_only_the_colours_of_the_page(html):
    style = re.search(r"<style>(.*?)</style>", html, re.S)[1]
    light, dark = style.split("prefers-color-scheme: dark")[:2]
    svgs = re.findall(r"<svg .*?</svg>", html, re.S)
    used = {colour for svg in svgs for colour in re.findall(r"(?:fill|stroke): ?([^;\"]+)", svg)}
    assert used > {"var(--c0)", "var(--soft)", "var(--faint)", "none"}
    for colour in used - {"none"}:
        name = colour.removeprefix("var(").removesuffix(")")
        assert f"{name}: #" in light and f"{name}: #" in dark.split("}")[0], colour
    assert not any("font-family" in svg or "<metadata" in svg or "<style" in svg for svg in svgs)


def test_texts_of_a_chart_are_written_as_they_are_and_warn_of_nothing():
    name = "a $x^2$ <b> \\frac 漢字 fill: #123456"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = chart.drawn(
            "a", '"title"', (400, 300), lambda axes: chart.named_rows(axes, [name[:15], name[15:]])
        )
    assert ">a $x^2$ &lt;b&gt; \\f" in svg and "漢字" in svg
    assert 'aria-label="&#34;title&#34;"' in svg


def test_names_beside_points_lie_on_nothing():
    rng = np.random.default_rng(0)
    places = [(float(x), float(y)) for x, y in rng.uniform(1, 2, (40, 2))]
    boxes, marks = [], []

    def put(axes):
        axes.plot(*zip(*places, strict=True), **chart.points_of(0))
        chart.label_points(axes, places, [f"some_model_{n}" for n in range(40)])
        boxes.extend(text.get_window_extent() for text in axes.texts)
        marks.extend(axes.transData.transform(places))

    chart.drawn("a", "title", (500, 400), put)
    assert len(boxes) >= 7
    assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
    assert not [1 for box in boxes for x, y in marks if box.contains(x, y)]


def test_the_frontier_holds_what_nothing_else_beats():
    found = [(1.0, 5.0), (2.0, 6.0), (3.0, 2.0), (4.0, 2.0), (0.5, 9.0), (9.0, 0.1)]
    assert frontier(found, named("fid")) == [4, 0, 2, 5]
    assert frontier([(x, 7.0 - y) for x, y in found], named("psnr")) == [4, 0, 2, 5]


def test_a_forest_draws_the_numbers_of_its_table_in_the_colours_of_the_models(comparison):
    places = points.place_of(comparison)
    found = curves.forest(comparison, places)
    marks = place_of_marks(found.charts[0])
    assert [line[0] for line in found.numbers] == [
        row.name for row in comparison.rows if row.numbers("values", "fid")
    ]
    logs = [math.log(float(line[1])) for line in found.numbers]
    slope, start = np.polyfit(logs, [x for x, _, _ in marks], 1)
    assert slope > 50
    assert [x for x, _, _ in marks] == pytest.approx([start + slope * log for log in logs], abs=1.5)
    assert [y for _, y, _ in marks] == sorted(y for _, y, _ in marks)
    colours = {row.name: f"c{places[row.first.run.path] % chart.COLOURS}" for row in comparison.rows}
    assert [colour for *_, colour in marks] == [colours[line[0]] for line in found.numbers]


def test_a_model_has_one_colour_and_mark_in_every_chart(comparison, undrawn):
    places = points.place_of(comparison)
    ((headline, rows),) = points.by_evaluations(comparison).items()
    time, examples = (of(headline, rows, places) for of in (curves.against_time, curves.against_examples))
    assert sorted(time.legend) == sorted(examples.legend)
    assert len({(line.colour, line.mark) for line in time.legend}) == len(time.legend) == 7
    for row, name in zip(rows, points.short_names(rows), strict=True):
        (line,) = [line for line in time.legend if line.name == name]
        assert line.colour == places[row.first.run.path] % chart.COLOURS
    looks = {(n % chart.COLOURS, chart.mark_of(n)) for n in range(40)}
    assert len(looks) == 40  # neighbours of one colour have another mark


def test_where_more_is_better_charts_turn_around(tmp_path, undrawn):
    for name, psnr, ms in (("low", 20.0, 9.0), ("high", 30.0, 5.0), ("fast", 25.0, 1.0)):
        made = scored(name, "New", 0, {"psnr": psnr}, **{"test.speed": {"ms_per_sample": ms}})
        write_run(tmp_path, made, [psnr, psnr - 1], pictures=False, score="psnr")
    comparison = compare([tmp_path])
    places = points.place_of(comparison)
    speed, forest = curves.pareto(comparison, places), curves.forest(comparison, places)
    assert ": up and to the left is better" in speed.told
    assert [line[0] for line in speed.numbers if line[3]] == ["high", "fast"]
    assert "farther right is better" in forest.told and "logarithmic" not in forest.told
    seeds = curves.seeds(comparison.headline, comparison.rows, places)
    assert [line[3:] for line in seeds.numbers] == [["29", "30"], ["24", "25"], ["19", "20"]]


@pytest.mark.parametrize(
    ("where", "last"), [(lambda found: found.seconds, 9.0), (lambda found: found.examples_seen, 32_000.0)]
)
def test_curves_are_geometric_means_of_the_seeds(tmp_path, where, last):
    for seed, curve in enumerate([[8.0, 2.0], [2.0, 18.0]]):
        write_run(tmp_path, record("a", seed=seed), curve, pictures=False)
    comparison = compare([tmp_path])
    found = points.over_seeds(comparison.rows[0], comparison.headline, where)
    assert found == [pytest.approx((0.0, 4.0, 2.0, 8.0)), pytest.approx((last, 6.0, 2.0, 18.0))]


def test_the_numbers_of_every_chart_can_be_read(html, comparison, undrawn):
    figures = re.findall(r"<figure>.*?</figure>", html, re.S)
    charts = [figure for figure in figures if "<svg" in figure]
    assert len(charts) >= 6
    assert all("<table>" in figure and 'scope="row"' in figure for figure in charts)
    (time,) = [one for one in charts if "against seconds" in one]
    cells = re.findall(r'<td class="number">(.*?)</td>', time)
    ((headline, rows),) = points.by_evaluations(comparison).items()
    drawn = curves.against_time(headline, rows, points.place_of(comparison))
    assert cells == [text for line in drawn.numbers for text in line[1:]]


def sampled(root):
    return [(one.label, [point[:2] for point in one.points]) for one in points.by_sampler(compare([root]))]


def test_a_speed_file_of_another_shape_is_passed_over(tmp_path):
    folder = write_run(tmp_path, record("ddpm", "Diffusion"), pictures=False)
    for text in ("{", "[]", '{"rows": 5}', '{"rows": [5, {"nfe": "x"}, {"fid@797": 1.0}]}'):
        (folder / "speed.json").write_text(text)
        assert sampled(tmp_path) == []


@pytest.mark.parametrize("place", ["speed.json", "speed/speed.json"])
def test_a_speed_curve_stands_beside_scores_of_its_protocol_alone(tmp_path, place):
    made = record("ddpm", "Diffusion")
    folder = write_run(tmp_path, made, pictures=False)
    lines = [{"sampler": "DDIM", "passes": n, "metric": "fid@797", "value": 9.0 / n} for n in (2, 5, 20)]
    protocol = {**made["test"]["protocol"], "metrics": {}}
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text(json.dumps({"protocol": {**protocol, "split": "val"}, "points": lines}))
    assert sampled(tmp_path) == []
    (folder / place).write_text(json.dumps({"protocol": protocol, "points": lines}))
    assert ("ddpm/ddim", [(2.0, 4.5), (5.0, 1.8), (20.0, 0.45)]) in sampled(tmp_path)


def test_weights_sampled_in_several_ways_are_drawn_against_steps_and_others_are_not(tmp_path):
    variant = entry(1.5, **{"speed.nfe": 10})
    made = record("ddpm", "Diffusion", **{"test.speed.nfe": 50, "variants": {"ddim-10": variant}})
    write_run(tmp_path, made, pictures=False)
    write_run(tmp_path, record("gan"), pictures=False)
    assert sampled(tmp_path) == [("ddpm", [(50.0, 1.2)]), ("ddpm/ddim", [(10.0, 1.5)])]


# In a browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]


@pytest.fixture(scope="session")
def tab():
    """One tab of one browser for all tests, and whatever it complained of."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: make browser")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)  # headless, own profile
        tab, troubles = chromium.new_page(), []
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("request", lambda request: troubles.append(request.url) if is_outside(request.url) else None)
        yield tab, troubles
        chromium.close()


def is_outside(url):
    return not url.startswith(("file:", "data:"))


@pytest.fixture(scope="module")
def loaded(tab, html, tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(html, encoding="utf-8")
    tab[0].goto(file.as_uri())
    return tab


@pytest.fixture
def opened(loaded):
    """Returns the report at a width and in a colour scheme, desk and light without any."""
    tab, troubles = loaded

    def at(width=1280, scheme="light"):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        return tab

    yield at
    assert troubles == []  # no error, no warning, no request


def test_the_report_opens_without_errors_or_requests(opened):
    tab = opened()
    assert tab.inner_text("h1") == "10 models on digits"
    assert "ddpm_digits has the lowest FID" in tab.inner_text("#verdict .lead")
    tab.evaluate("Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode())))")


def test_the_first_tab_leads_past_the_contents(opened):
    tab = opened()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the report"
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "content"


def test_the_colour_scheme_is_the_readers_in_the_page_and_in_its_charts(opened):
    levels = {}
    for scheme in ("light", "dark"):
        colours = opened(scheme=scheme).evaluate(
            "[getComputedStyle(document.documentElement).backgroundColor,"
            "getComputedStyle(document.querySelector('svg.wide text')).fill]"
        )
        levels[scheme] = [list(map(int, re.findall(r"\d+", colour)))[:3] for colour in colours]
    (paper, ink), (dark_paper, dark_ink) = levels["light"], levels["dark"]
    assert min(paper) > 200 and max(dark_paper) < 60
    assert max(ink) < 130 and min(dark_ink) > 150


def test_the_page_never_scrolls_sideways_and_has_a_chart_for_every_width(opened):
    for width in (320, 390, 768, 1280):
        tab = opened(width)
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        kinds = [tab.locator(f"svg.{kind}").first.is_visible() for kind in ("wide", "narrow")]
        assert kinds == [width > 640, width <= 640]
        inside = tab.locator("svg:visible").evaluate_all(
            "s => s.map(x => x.getBoundingClientRect()).every(b => b.width > 250 && b.right <= innerWidth)"
        )
        assert inside


def test_a_phone_sees_legible_labels_inside_their_charts(opened):
    texts = (
        opened(390)
        .locator("svg.narrow text:visible")
        .evaluate_all(
            "t => t.map(x => [x.getBoundingClientRect(), x.ownerSVGElement.getBoundingClientRect()])"
            ".map(([a, b]) => [a.height, a.left - b.left, b.right - a.right])"
        )
    )
    assert len(texts) > 50
    assert min(height for height, _, _ in texts) > 9
    assert min(min(left, right) for _, left, right in texts) > -4  # a tick's number may reach into the margin


def column(tab, name):
    """The texts of a column of the big table, and its head."""
    heads = tab.locator("table.sortable thead th")
    place = next(n for n, text in enumerate(heads.all_inner_texts()) if text.startswith(name))
    cells = tab.locator(f"table.sortable tbody tr > :nth-child({place + 1})")
    return heads.nth(place), cells.evaluate_all("cells => cells.map(c => c.dataset.value)")


def test_a_click_sorts_numbers_as_numbers_and_back(opened):
    tab = opened()
    head, before = column(tab, "ms/sample")
    head.locator("button").click()
    _, rising = column(tab, "ms/sample")
    assert [float(v) for v in rising] == sorted(map(float, before))
    assert rising != sorted(rising)  # as texts they would stand otherwise
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    _, falling_ = column(tab, "ms/sample")
    assert [float(v) for v in falling_] == sorted(map(float, before), reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    assert tab.locator("th[aria-sort=ascending], th[aria-sort=descending]").count() == 1
    assert "ms/sample, descending" in tab.inner_text("#sorted")


def test_the_keyboard_sorts_and_empty_cells_come_last(opened):
    tab = opened()
    head, before = column(tab, "bits/dim")
    assert "" in before
    for key, reverse in (("Enter", False), ("Space", True)):
        head.locator("button").focus()
        tab.keyboard.press(key)
        _, after = column(tab, "bits/dim")
        full = [float(v) for v in after if v]
        assert full == sorted(full, reverse=reverse)
        assert after[len(full) :] == [""] * (len(after) - len(full))
    head, _ = column(tab, "model")
    head.locator("button").press("Enter")
    _, names = column(tab, "model")
    assert names[0] == "cvae_digits"
    assert tab.locator("th[aria-sort=ascending], th[aria-sort=descending]").count() == 1
    assert names.index("ddpm_digits/ddim-5") < names.index("ddpm_digits/ddim-10")


def shown_frames(tab):
    return tab.locator(".films img:visible").evaluate_all("i => i.map(x => x.dataset.seen)")


def test_the_slider_goes_through_the_training_by_keyboard_and_click(opened):
    tab = opened()
    slider = tab.get_by_label("Share of the training")
    assert set(shown_frames(tab)) == {"320,000 img"}
    slider.focus()
    tab.keyboard.press("Home")
    assert set(shown_frames(tab)) == {"0 img"}
    assert tab.inner_text("#share-told") == "0 %"
    for _ in range(5):
        tab.keyboard.press("PageUp")
    assert set(shown_frames(tab)) == {"160,000 img"}
    assert "160,000 img" in tab.locator(".films .when").first.inner_text()
    assert slider.get_attribute("aria-valuetext") == "50 percent of the training"
    box = slider.bounding_box()
    slider.click(position={"x": box["width"] - 2, "y": box["height"] / 2})
    assert set(shown_frames(tab)) == {"320,000 img"}
    assert tab.locator(".films figure").count() == tab.locator(".films img:visible").count() == 7


@pytest.fixture(scope="module")
def small(tab, hostile, tmp_path_factory):
    """The other page, which has few lines and all kinds of elements."""
    file = tmp_path_factory.mktemp("hostile") / "hostile.html"
    file.write_text(hostile, encoding="utf-8")
    tab[0].goto(file.as_uri())  # a dialogue would be a console message or hang
    return tab


DARK_PHONE = pytest.param(390, "dark", "false", marks=pytest.mark.slow)


@pytest.mark.parametrize(("width", "scheme", "details"), [(1280, "light", "true"), DARK_PHONE])
def test_the_report_passes_an_accessibility_check(small, width, scheme, details):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    opened, troubles = small
    opened.set_viewport_size({"width": width, "height": 900})
    opened.emulate_media(color_scheme=scheme)
    opened.evaluate(f"document.querySelectorAll('details').forEach(d => d.open = {details})")
    results = axe.run(opened, options={"resultTypes": ["violations"]})
    assert len(results.response["passes"]) > 40, "hardly anything was checked"
    assert results.violations_count == 0, results.generate_report()
    assert opened.locator("section").count() >= 14 and troubles == []


def test_no_script_of_a_name_runs(small):
    opened, troubles = small
    assert SCRIPT in opened.inner_text("table.sortable")
    assert opened.locator("img[src=x]").count() == 0 and troubles == []


def test_a_repeated_picture_is_shown_from_its_first_copy(small):
    image = small[0].locator("#failures img")
    image.evaluate("i => (i.loading = 'eager', i.decode())")
    assert image.evaluate("i => [i.naturalWidth, 'copy' in i.dataset]") == [66, True]
