"""The card's figures: drawn when they say something, always the same bytes, and legible."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps, rcParamsDefault
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text
from records import (
    HOSTILE,
    VIT_B32,
    hub_source,
    local_source,
    make_record,
    make_result,
    make_results,
    poisoned_results,
    published,
)
from running import LIMIT, ROOT, ended
from towers import TINY

from hfcart.records import (
    CompareRecord,
    CompareRow,
    DatasetRecord,
    EvalRecord,
    Look,
    Reference,
    Similarity,
    SweepPoint,
    SweepRecord,
    TrainedTask,
    TrainingCurve,
    Validation,
)
from hfcart.report.accuracy import mean_interval, wilson
from hfcart.report.compare_table import as_markdown
from hfcart.report.merge_card import render_card
from hfcart.report.plots import draw_accuracy, draw_compare, draw_figures, draw_sweep, draw_training
from hfcart.report.plots._accuracy import _draw_accuracy
from hfcart.report.plots._canvas import TOWERS, _ink, short_names
from hfcart.report.plots._merge import _draw_energy, _draw_similarity, _energy_grid
from hfcart.report.plots._search import _draw_curve, _draw_grid
from hfcart.report.plots._training import _draw

ENERGY, SIMILARITY = "figures/energy.png", "figures/similarity.png"
VIT_L14 = {**VIT_B32, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}


def towers(count: int) -> tuple:
    return tuple(hub_source(f"user{i % 3}/clip-vit-large-patch14_task{i}") for i in range(count))


def evaluation(count: int) -> EvalRecord:
    """As many tasks, with references of both kinds, and now and then a long title, a sample or an empty task."""
    individual = Reference("user/one", 1.0, measured=True)
    results = [
        make_result(
            f"task{i}",
            [(0, 0)] if i == 6 else [(50, 50 - i % 7), (50, 50)],
            title="A title that goes on and on, far too long" if i % 5 == 4 else f"Task {i}",
            limit=100 if i % 4 == 3 else None,
            rows=0 if i == 6 else 2000 if i % 4 == 3 else 100,
            pretrained=published(0.3),
            individual=individual if i % 2 else published(0.97),
        )
        for i in range(count)
    ]
    return make_results(None, *results)


def chunks(png: bytes) -> list[bytes]:
    """The names of a PNG's chunks."""
    names, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        names.append(png[at + 4 : at + 8])
        at += 12 + length
    return names


@pytest.mark.parametrize(
    ("record", "names"),
    [
        (make_record(cfg=TINY), [ENERGY, SIMILARITY]),
        (make_record(cfg=TINY, qkv="fused", projection=True), [ENERGY, SIMILARITY]),
        (make_record(cfg=TINY, method="average"), [SIMILARITY]),
        # Of two towers it is one number, which the card says in words.
        (make_record(towers(2), cfg=TINY, method="task_arithmetic", base=hub_source("a/b")), []),
        (make_record(towers(2), cfg=TINY), [ENERGY]),
        (make_record(towers(1), cfg=TINY), [ENERGY]),
        (make_record(towers(1), cfg=TINY, method="average"), []),
        (make_record(towers(1), cfg=TINY, method="task_arithmetic", base=hub_source("a/b")), []),
    ],
    ids=range(8),
)
def test_the_card_shows_what_is_drawn(tmp_path, record, names):
    assert draw_figures(record, tmp_path) == names
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == names
    assert re.findall(r"\]\((figures/[^)]*)\)", render_card(record)) == names


DRAW = """
import hashlib, pickle, sys
from pathlib import Path
from hfcart.report.plots import draw_accuracy, draw_compare, draw_figures, draw_sweep, draw_training
record, results = pickle.loads(Path("record").read_bytes())
names = [*draw_figures(record, Path()), draw_accuracy(results, Path())]
assert not {"matplotlib.pyplot", "torch", "tkinter"} & set(sys.modules)
print(*(hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in names))
"""


def test_same_record_same_bytes_whatever_the_users_settings(tmp_path):
    record = make_record(cfg=TINY)
    results = evaluation(3)
    names = [*draw_figures(record, tmp_path), draw_accuracy(results, tmp_path)]
    here = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]
    (tmp_path / "record").write_bytes(pickle.dumps((record, results)))
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 20\nfont.family: serif\naxes.facecolor: black\nsavefig.dpi: 30\nimage.cmap: jet\nbackend: tkagg\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LANG": "de_DE.UTF-8"}
    done = ended([sys.executable, "-c", DRAW], cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == here


def test_pictures_hold_pixels_and_nothing_else(tmp_path):
    for name in draw_figures(make_record(), tmp_path):
        png = (tmp_path / name).read_bytes()
        assert set(chunks(png)) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
        width, height = struct.unpack(">II", png[16:24])
        assert width == 1200
        assert 400 <= height <= 1200
        assert len(png) < 150_000


def test_grid_holds_the_record():
    record = make_record(cfg=TINY)
    energies = {t.name: t.energy for t in record.tensors}
    grid, rows = _energy_grid(record)
    assert rows == ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    assert grid[1, 1] == 100 * energies["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    assert grid[5, 0] == 100 * energies["vision_model.encoder.layers.0.mlp.fc2.weight"]
    grid, rows = _energy_grid(make_record(cfg=TINY, qkv="fused"))
    assert rows == ["q, k, v fused", "out_proj", "fc1", "fc2"]
    one_less = tuple(
        dataclasses.replace(t, energy=None) if t.name.endswith("1.mlp.fc1.weight") else t for t in record.tensors
    )
    grid, _ = _energy_grid(dataclasses.replace(record, tensors=one_less))
    assert np.argwhere(np.isnan(grid)).tolist() == [[4, 1]]


def pixel(figure, row: float, column: float) -> list[int]:
    """Colour of a cell near its corner, where no number is."""
    figure.canvas.draw()
    x, y = figure.axes[0].transData.transform((column - 0.35, row - 0.35))
    picture = np.asarray(figure.canvas.buffer_rgba())
    return picture[picture.shape[0] - 1 - int(y), int(x), :3].tolist()


def test_colours_mean_what_the_card_says():
    cosine = ((1.0, 0.4, -0.5), (0.4, 1.0, float("nan")), (-0.5, float("nan"), 1.0))
    figure = _draw_similarity(Similarity("mean", cosine, (0.1, 0.1, 0.1)), towers(3))
    red, white = pixel(figure, 0, 1), pixel(figure, 0, 2)
    assert red[0] > red[2] + 50, "above what unrelated towers show: red"
    assert min(white) > 240, "three unrelated towers show -0.5"
    assert pixel(figure, 1, 1) == pixel(figure, 1, 2) == [229, 229, 229]
    figure = _draw_similarity(Similarity("base", cosine, (0.1, 0.1, 0.1)), towers(3))
    blue = pixel(figure, 0, 2)
    assert blue[2] > blue[0] + 50, "against each other: blue"
    low, high = pixel(drawn := _draw_energy(np.array([[20.0, 90.0]]), ["fc1"]), 0, 0), pixel(drawn, 0, 1)
    assert sum(high[:2]) > sum(low[:2]) + 200


def texts(figure) -> list[Text]:
    figure.canvas.draw()
    axes, bar = figure.axes
    # The scale's own ticks are left out: it keeps some beyond its ends, and does not draw them.
    ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    return [axes.title, axes.xaxis.label, bar.yaxis.label, *axes.texts, *ticks]


@pytest.mark.parametrize("count", [3, 8, 14, 20, 24, 40, 100])
def test_everything_fits(count):
    record = make_record(towers(count), cfg=VIT_L14)
    for figure in (_draw_similarity(record.similarity, record.sources), _draw_energy(*_energy_grid(record))):
        axes = figure.axes[0]
        drawn = texts(figure)
        for text in drawn:
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text.get_text()
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text.get_text()
            assert text.get_fontsize() >= 7
        cell = axes.bbox.width / (axes.get_xlim()[1] - axes.get_xlim()[0])
        assert all(text.get_window_extent().width < cell for text in axes.texts)
        ticks = [tick.get_window_extent() for tick in axes.get_xticklabels()]
        assert all(left.x1 < right.x0 for left, right in zip(ticks, ticks[1:], strict=False))
        names = sorted((tick.get_window_extent() for tick in axes.get_yticklabels()), key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 + 2 for low, high in zip(names, names[1:], strict=False))


@pytest.mark.parametrize("colours", ["cividis", "RdBu_r"])
def test_numbers_stand_out_from_every_colour(colours):
    for place in np.linspace(0, 1, 101):
        channels = np.array(colormaps[colours](place)[:3])
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        light = float(linear @ [0.2126, 0.7152, 0.0722])
        contrast = (light + 0.05) / 0.05 if _ink(colormaps[colours], place) == "black" else 1.05 / (light + 0.05)
        assert contrast >= 4.5, place


def test_short_names_tell_towers_apart():
    assert short_names(["t/clip-vit_sun397", "t/clip-vit_cars", "u/clip-vit_dtd"]) == ["sun397", "cars", "dtd"]
    assert short_names(["a/tower", "b/tower"]) == ["a/tower", "b/tower"]
    assert short_names(["a/svhn", "a/svhn2"]) == ["svhn", "svhn2"]
    assert short_names(["a/clip_", "a/clip_b"]) == ["clip_", "clip_b"]
    assert short_names(["a/x", "a/x"]) == ["x", "x"]
    assert short_names(["y" * 40, "z"]) == ["y" * 25 + "…", "z"]
    assert short_names(["mnist$^$", "眼\u202e", "Ärger"]) == ["mnist$^$", "??", "Ärger"]


def test_hostile_names_are_only_drawn(tmp_path):
    sources = tuple(local_source(value) for value in HOSTILE)
    record = make_record(sources, cfg=TINY)
    assert draw_figures(record, tmp_path) == [ENERGY, SIMILARITY]
    assert sorted(path.name for path in Path(tmp_path).rglob("*.png")) == ["energy.png", "similarity.png"]


# Accuracy


def test_the_chart_is_there_and_holds_pixels_and_nothing_else(tmp_path):
    assert draw_accuracy(evaluation(8), tmp_path) == "figures/accuracy.png"
    png = (tmp_path / "figures" / "accuracy.png").read_bytes()
    assert set(chunks(png)) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
    assert struct.unpack(">I", png[16:20]) == (1200,)


@pytest.mark.parametrize("count", [1, 2, 8, 14, 20, 60])
def test_the_chart_fits(count):
    figure = _draw_accuracy(evaluation(count))
    figure.canvas.draw()
    (axes,) = figure.axes
    names = [tick.get_window_extent() for tick in axes.get_yticklabels()]
    boxes = [*names, *(text.get_window_extent() for text in [axes.title, axes.xaxis.label, *axes.texts])]
    legend = figure.legends[0].get_window_extent()
    for box in (*boxes, legend):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
    assert all(not axes.bbox.overlaps(legend) and not box.overlaps(legend) for box in boxes)
    names.sort(key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 2 for low, high in zip(names, names[1:], strict=False))
    assert len(names) == count + (count > 1)


def bars(figure) -> list[tuple[float, float, str]]:
    """(middle, length, colour) of every bar, from the top."""
    return sorted(
        (round(bar.get_y() + bar.get_height() / 2, 6), round(bar.get_width(), 6), to_hex(bar.get_facecolor()))
        for bar in figure.axes[0].patches
    )


def test_the_chart_shows_the_numbers():
    measured = Reference("user/one", 0.9, measured=True)
    first = make_result("a", [(10, 4)], pretrained=published(0.25), individual=measured)
    second = make_result("b", [(10, 8)], pretrained=published(0.5))
    figure = _draw_accuracy(make_results(None, first, second))
    grey, blue, orange = "#bbbbbb", "#0072b2", "#e69f00"
    assert [bar[1:] for bar in bars(figure)] == [
        (25.0, grey), (40.0, blue), (90.0, orange), (50.0, grey), (80.0, blue), (37.5, grey), (60.0, blue),
    ]  # fmt: skip
    (axes,) = figure.axes
    assert [bar.get_hatch() is not None for bar in axes.patches] == [True] * 3 + [False] * 4, "published ones"
    assert [text.get_text() for text in axes.texts] == ["40.0", "80.0", "60.0"]
    low, high = wilson(4, 10)
    assert axes.lines[0].get_xdata().tolist() == [100 * low, 100 * high]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["A", "B", "mean"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "pretrained", "this tower", "individual", "published, not measured here",
    ]  # fmt: skip
    alone = _draw_accuracy(make_results(None, make_result("a", limit=100, rows=999)))
    assert not alone.legends and alone.axes[0].get_yticklabels()[0].get_text() == "A (sample)"


def test_the_towers_are_told_apart_in_grey_too():
    light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in map(to_rgb, TOWERS.values()))
    assert all(high - low > 0.05 for low, high in zip(light, light[1:], strict=False))


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_titles_are_only_drawn(tmp_path, value):
    assert draw_accuracy(poisoned_results(make_record(cfg=TINY), value), tmp_path) == "figures/accuracy.png"
    assert [path.name for path in tmp_path.rglob("*.*")] == ["accuracy.png"]


# Searches


def sweep_record(ranks: tuple = (0.04, 0.08, 1.0), scales: tuple = (1.0, 2.0), **changes: object) -> SweepRecord:
    """A sweep whose anchor reaches 40 of 100 images of each task."""
    count = max(1, len(ranks)) * len(scales)
    grid = [(rank, scale) for rank in (ranks or (None,)) for scale in scales]
    points = [SweepPoint(None, 0.0, (40, 40))]
    points += [SweepPoint(rank, scale, (30 + 7 * i, 35 + 5 * i)) for i, (rank, scale) in enumerate(grid)]
    sources = tuple((source.label, source.commit) for source in towers(3))
    environment = make_record(cfg=TINY).environment
    fields = (False, "split", sources, "user/clip", "validation", ("a", "b"), (100, 100), None)
    made = SweepRecord("cart", "average", *fields, ranks, scales, tuple(points), count, environment)
    return dataclasses.replace(made, **changes)


def compare_record(*rows: CompareRow) -> CompareRecord:
    sources = tuple((source.label, source.commit) for source in towers(3))
    titles = (("a", "A"), ("b", "B"))
    environment = make_record(cfg=TINY).environment
    return CompareRecord(sources, "user/clip", None, "test", None, titles, (100, 100), "float32", rows, environment)


def test_no_chart_of_one_bar(tmp_path):
    one = make_results(None, make_result("a"))
    assert draw_accuracy(one, tmp_path) is None
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "accuracy.png").write_bytes(b"of an earlier run")
    assert draw_accuracy(one, tmp_path) is None and not any((tmp_path / "figures").iterdir())
    assert "figures/accuracy.png" not in render_card(make_record(), results=make_results(make_record(), *one.results))
    assert draw_accuracy(make_results(None, make_result("a", pretrained=published(0.3))), tmp_path)
    assert draw_sweep(sweep_record((0.08,), (1.0,)), tmp_path) == []
    assert draw_sweep(sweep_record((0.08,), (1.0, 2.0)), tmp_path) == ["figures/curve.png"]
    row = CompareRow("cart", "towers only", {}, (70, 60), seconds=1.0)
    assert draw_compare(compare_record(row), tmp_path) is None
    assert "compare.png" not in as_markdown(compare_record(row))
    both = compare_record(CompareRow("pretrained", "", {}, (40, 40)), row)
    assert draw_compare(both, tmp_path) == "figures/compare.png" and "compare.png" in as_markdown(both)


def words_of(figure) -> str:
    """All that is written in a figure, in the order it was put there."""
    found = [text.get_text() for text in figure.findobj(Text)]
    return "\n".join(text for text in found if text)


def test_titles_are_words_and_letters_are_letters():
    """θ, λ and their indices are set as formulas; titles say what is seen, without a method's registry name."""
    record = make_record(cfg=TINY)
    curve, grid = _draw_curve(sweep_record()), _draw_grid(sweep_record(), np.full((2, 3), 50.0))
    similarity = _draw_similarity(record.similarity, record.sources)
    assert "Accuracy over rank, for each scale" in words_of(curve) and r"$\lambda = 2$" in words_of(curve)
    assert "CART, 3 towers, mean over 200 validation images of 2 tasks" in words_of(curve)
    assert r"$\theta_t - \bar\theta$" in words_of(similarity)
    for figure in (curve, grid, similarity):
        plain = re.sub(r"\$[^$]*\$", "", words_of(figure))
        assert not re.search("[θλτ]|cart", plain)
        fonts = {text.get_fontname() for text in figure.findobj(Text)}
        assert fonts == {"DejaVu Sans"} and rcParamsDefault["mathtext.fontset"] == "dejavusans"


def test_the_curve_shows_points_bands_and_the_best():
    record = sweep_record()
    figure = _draw_curve(record)
    (axes,) = figure.axes
    first, second = axes.lines[:2]
    assert first.get_ydata().tolist() == pytest.approx([32.5, 44.5, 56.5])
    assert second.get_ydata().tolist() == pytest.approx([38.5, 50.5, 62.5])
    bands = [collection.get_paths()[0].vertices[:, 1] for collection in axes.collections]
    low, high = mean_interval([(30, 100), (35, 100)])
    assert bands[0].min() == pytest.approx(100 * low) and any(np.isclose(bands[0], 100 * high))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [r"$\lambda = 1$", r"$\lambda = 2$", "average alone, 40.0", "best, 62.5"]
    figure.canvas.draw()
    for text in [*figure.legends[0].get_texts(), axes.xaxis.label, figure._suptitle]:
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0


def test_on_test_images_nothing_is_the_best():
    texts = _draw_curve(sweep_record(part="test")).legends[0].get_texts()
    assert [text.get_text() for text in texts] == [r"$\lambda = 1$", r"$\lambda = 2$", "average alone, 40.0"]


def test_white_is_where_nothing_is_gained_or_lost():
    """Diverging colours are centred on what they diverge from: the anchor's accuracy, unrelated towers."""
    grid = _draw_grid(sweep_record(), np.array([[30.0, 40.0, 45.0], [40.0, 50.0, 38.0]]))
    record = make_record(cfg=TINY)
    similarity = _draw_similarity(record.similarity, record.sources)
    for figure, neutral in ((grid, 40.0), (similarity, -1 / 7)):
        image = figure.axes[0].images[0]
        assert image.norm.vmin + image.norm.vmax == pytest.approx(2 * neutral)
        red, green, blue, _ = image.cmap(image.norm(neutral))
        assert max(red, green, blue) - min(red, green, blue) < 0.02 and min(red, green, blue) > 0.95


def test_intervals_of_means():
    assert mean_interval([(50, 100)]) == pytest.approx(wilson(50, 100), abs=0.003)
    one, many = mean_interval([(50, 100)]), mean_interval([(50, 100)] * 4)
    assert many[1] - many[0] == pytest.approx((one[1] - one[0]) / 2)
    low, high = mean_interval([(100, 100), (100, 100)])
    assert low < 1.0 == high, "all right is not certain to stay so"


# ------------------------------------------------------------------------------------------------- a fine-tuning


def trained(titles: list[str]) -> tuple[TrainedTask, ...]:
    data = DatasetRecord("user/data", None, "train", "5" * 40)
    return tuple(TrainedTask(f"task{i}", title, data, 90, 0, "a" * 64) for i, title in enumerate(titles))


def curve(tasks: int, kept: int = 20, images: int = 50) -> TrainingCurve:
    looks = tuple(Look(step, tuple(10 + step // 2 + task for task in range(tasks))) for step in (0, 10, 20, 30))
    return TrainingCurve((10, 20, 30), (2.5, 1.25, 1.0), kept, Validation((images,) * tasks, looks))


def test_a_training_shows_its_loss_its_accuracy_with_a_band_and_the_step_that_was_kept(tmp_path):
    tasks = trained(["Cars", "Digits"])
    figure = _draw(curve(2), tasks)
    loss, accuracy = figure.axes
    assert loss.lines[1].get_xydata().tolist() == [[5.0, 2.5], [15.0, 1.25], [25.0, 1.0]]
    mean, *each = [line for line in accuracy.lines if len(line.get_xdata()) == 4]
    assert mean.get_ydata() == pytest.approx([21, 31, 41, 51]) and len(each) == 2
    (band,) = accuracy.collections
    low, high = (100 * end for end in mean_interval([(20, 50), (21, 50)]))
    at_20 = sorted(y for x, y in band.get_paths()[0].vertices if x == 20)
    assert (at_20[0], at_20[-1]) == pytest.approx((low, high))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *("mean of 2 tasks", "Cars", "Digits", "kept: step 20")
    ]
    assert all(20 in axes.lines[0].get_xdata() for axes in figure.axes)  # in both panels
    assert len(_draw(curve(9), trained([f"Task {i}" for i in range(9)])).legends[0].get_texts()) == 2
    alone = dataclasses.replace(curve(1), validation=None)
    assert len(_draw(alone, tasks[:1]).axes) == 1
    for folder in ("a", "b"):
        assert draw_training(curve(2), tasks, tmp_path / folder) == "figures/training.png"
    first, second = ((tmp_path / folder / "figures" / "training.png").read_bytes() for folder in ("a", "b"))
    assert first == second != b""


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_no_title_of_a_task_breaks_the_figure_of_its_training(value, tmp_path):
    draw_training(curve(2), trained([value, "Plain"]), tmp_path)


def test_a_broken_list_of_fonts_is_not_told_of(tmp_path):
    """matplotlib's cache, as a machine can have it: without most fonts that come with matplotlib."""
    code = (
        "import sys, pickle; from pathlib import Path; from matplotlib import font_manager as fonts\n"
        "kept = [f for f in fonts.fontManager.ttflist if f.name == 'DejaVu Sans']\n"
        "fonts.fontManager.ttflist = kept\n"
        "from hfcart.report.plots import draw_figures\n"
        "print(draw_figures(pickle.loads(sys.stdin.buffer.read()), Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], input=pickle.dumps(make_record()), capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=LIMIT,
    )  # fmt: skip
    assert "similarity.png" in done.stdout.decode() and done.stderr == b""
