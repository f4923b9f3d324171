import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ldm_scaling.analysis import figures_models, report
from ldm_scaling.analysis.cost import FamilyRow
from ldm_scaling.analysis.figures import FIGURES, draw_all, draw_figure, write_drawing
from ldm_scaling.analysis.report import write_report
from ldm_scaling.analysis.sample_grids import Strips
from ldm_scaling.analysis.study import Study
from ldm_scaling.analysis.style import NotEnoughDataError, spread, width_colours
from ldm_scaling.records import Metric, Record
from tests.analysis.synthetic_records import CAPTIONS, larger_first, study_records
from tests.analysis.test_study import under

ROWS = tuple(
    FamilyRow(w, 1e6 * w, 1e6 * w, 1e9 * w, 1.01e9 * w, w / 96, w / 96, 20.0, 0.3, misprints)
    for w, misprints in ((64, ("gflops",)), (96, ()))
)


@pytest.fixture(autouse=True)
def counted_family(monkeypatch):
    """Counting eleven networks is tested elsewhere; here the table only has to be shown."""
    monkeypatch.setattr(figures_models, "family_table", lambda: ROWS)
    monkeypatch.setattr(report, "family_table", lambda: ROWS)


def save_strips(records, folder, size=4):
    folder.mkdir()
    for k, r in enumerate(records):
        strip = np.full((size, size * len(CAPTIONS), 3), k % 256, np.uint8)
        Image.fromarray(strip).save(folder / f"{r.hash}.png")
    return folder


def full_records():
    records = study_records(
        samplers=("ddim", "ddpm"), steps=(2, 8, 50), guidance=(2.0, 5.0), training=(1000, 5000)
    )
    losses = [
        Record(
            "training", {"family": "micro", "width": w, "step": s}, 0, 256,
            {"loss": Metric(0.1 + (w * s) ** -0.3)}, {"training_flops": 1e9 * w * s},
            protocol={"split": "validation"},
        )
        for w in (16, 24) for s in (10, 100, 1000, 10000)
    ]  # fmt: skip
    real = Record("real_images", {"split": "test"}, 0, 300, {"kd_lite0": Metric(0.03)})
    return [*records, *losses, real]


class Page(HTMLParser):
    """Tags in order, whether they nest, and what they refer to."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.links, self.ids = [], [], [], []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.links += [attrs[k] for k in ("src", "href") if k in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    records = full_records()
    samples = save_strips([r for r in records if r.kind == "samples"], folder / "samples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures_models, "family_table", lambda: ROWS)
        patch.setattr(report, "family_table", lambda: ROWS)
        for name, given in (("one", records), ("two", records[::-1])):
            write_report(given, folder / name, samples_dir=samples)
    return folder


def test_equal_records_give_equal_bytes(written):
    names = sorted(p.name for p in (written / "one").iterdir())
    expected = {f"{n}.{s}" for n in FIGURES for s in ("png", "svg")} | {"report.html"}
    assert set(names) == expected
    for name in names:
        assert (written / "one" / name).read_bytes() == (written / "two" / name).read_bytes(), name


def test_page_is_whole_and_needs_nothing_else(written):
    html = (written / "one" / "report.html").read_text()
    page = Page(html)
    assert html.lstrip().startswith("<!DOCTYPE html>")
    for link in page.links:
        assert link.startswith("data:") or link[1:] in page.ids, link[:80]
    outside = re.sub(r'(src|href)="data:[^"]*"', "", html)
    assert "http" not in outside
    assert "<script" not in html
    assert "url(" not in html
    assert len(page.ids) == len(set(page.ids))
    assert len(html) < 6e6


def test_page_is_accessible(written):
    page = Page((written / "one" / "report.html").read_text())
    tags = [tag for tag, _ in page.tags]
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert tags.count("table") == tags.count("caption")
    assert tags.count("figure") == tags.count("figcaption") == len(FIGURES)
    assert ("html", {"lang": "en"}) in page.tags
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")


def test_page_opens_with_the_answer(written):
    html = (written / "one" / "report.html").read_text()
    assert html.index('id="answer"') < html.index("<figure")
    assert "Up to a cost of" in html
    assert "width 16 is best" in html
    assert "not comparable with FID" in html
    assert "512 images each" in html
    assert "300 real held-out images score KD-Lite0 0.03" in html
    assert "misprint" in html
    assert "The held-out loss improves" in html


def test_inlined_figures_are_images(written):
    html = (written / "one" / "report.html").read_text()
    found = re.findall(r'src="data:image/(svg\+xml|png);base64,([^"]*)"', html)
    assert len(found) > len(FIGURES)
    for kind, data in found:
        content = base64.b64decode(data)
        if kind == "png":
            assert content.startswith(b"\x89PNG")
        else:
            ElementTree.fromstring(content)


def test_rising_metrics_refuted_claims_and_escaped_words(tmp_path, written):
    """The larger model is always the better one here, so the first claim does not hold."""
    records = study_records(larger_first, steps=(2, 8), guidance=(3.0,))
    context = {"dataset": "<b>cats</b>", "limitations": ["a & b"], "commands": ["x > y"]}
    html = write_report(
        records, tmp_path, metric="alignment_lite0_minilm", context=context
    ).read_text()
    assert "higher is better" in html
    assert "does not hold, P" in html
    assert "does not hold" not in (written / "one" / "report.html").read_text()
    assert "&lt;b&gt;cats&lt;/b&gt;" in html
    assert "a &amp; b" in html
    assert "x &gt; y" in html


@pytest.mark.parametrize(
    "options",
    [
        {"widths": (24,), "steps": (8,), "guidance": (3.0,)},
        {"interval": False},
        {"steps": (8,), "seeds": (0, 1)},
    ],
    ids=["one point", "no intervals", "one step count, two seeds"],
)
def test_poor_records_still_make_a_report(tmp_path, options):
    html = write_report(study_records(**options), tmp_path).read_text()
    Page(html)
    assert "is left out" in html
    assert "no folder of samples was given" in html


def test_no_records_and_wrong_words(tmp_path):
    with pytest.raises(ValueError, match="none given"):
        write_report([], tmp_path)
    with pytest.raises(ValueError, match="axis='seconds'"):
        write_report(study_records(), tmp_path, axis="seconds")
    with pytest.raises(ValueError, match=r"unknown keys \['data'\]"):
        write_report(study_records(), tmp_path, context={"data": ""})
    with pytest.raises(ValueError, match="did you mean 'figure_9'"):
        draw_figure(Study.from_records(study_records()), "figure9")


def test_missing_figures_say_why():
    one = Study.from_records(study_records(widths=(16,), steps=(8,), guidance=(3.0,)))
    assert draw_all(one).missing == {
        "figure_1": "no folder of samples was given, so there are no images to show",
        "figure_3": "every width was evaluated at one length of training only",
        "figure_7": "only one guidance rate was sampled",
        "figure_8": "only one guidance rate was sampled",
        "figure_9": "only one number of steps was sampled",
        "figure_10": "no two widths were sampled at about the same cost",
        "figure_11": "only one sampler (DDIM) was used",
    }


def test_a_strip_must_be_squares(tmp_path):
    study = Study.from_records(study_records(widths=(16,), steps=(8,), guidance=(3.0,)))
    path = tmp_path / f"{study.points[0].records[0].hash}.png"
    Image.fromarray(np.zeros((4, 10, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match="10x4 is not a row of squares"):
        Strips(tmp_path).tiles(study.points[0])
    path.unlink()
    with pytest.raises(NotEnoughDataError, match="no strip found"):
        Strips(tmp_path).require(study.points)


def test_one_figure_alone(tmp_path):
    study = Study.from_records(study_records())
    paths = write_drawing(draw_figure(study, "frontier"), tmp_path)
    assert [p.name for p in paths] == ["frontier.png", "frontier.svg"]
    assert b"<dc:date>" not in paths[1].read_bytes()


def test_width_colours_darken():
    colours = width_colours((48, 16, 32, 24))
    luminance = [sum(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in colours.values()]
    assert list(colours) == [16, 24, 32, 48]
    assert luminance == sorted(luminance, reverse=True)


def test_labels_are_pushed_apart_no_further_than_needed():
    assert spread([0.0, 30.0], [10.0, 10.0]) == [0.0, 30.0]
    np.testing.assert_allclose(spread([5.0, 5.0, 5.0], [10.0] * 3), [-5.0, 5.0, 15.0])
    assert spread([], []) == []


def test_a_presets_study_makes_the_whole_report(tmp_path):
    records = under("paper", study_records(seeds=(0, 1)))
    html = write_report(records, tmp_path).read_text()
    assert "FID" in html
    assert "KD-Lite0" not in html
    assert (tmp_path / "figure_9.png").exists()
