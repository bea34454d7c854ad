"""The page, opened and used in Chromium: no request, no error, and everything on it works by mouse and by keyboard."""

from __future__ import annotations

import base64
import copy
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from sde_diffusion.report.html import Trajectory, comparison_html
from sde_diffusion.report.palette import colour
from tests.report.browser import launched, or_skip
from tests.report.synthetic import SAMPLERS, synthetic_pictures, synthetic_report

POINT = "#quality-chart path[aria-roledescription=point]"
BUNDLE = 900_000
"""Bytes of Vega, about."""

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = or_skip(launched(playwright))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the synthetic comparison."""
    report = synthetic_report()
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(comparison_html(report, *synthetic_pictures(report)), encoding="utf-8")
    return path


def opened(
    browser: Browser, path: Path, problems: list[str], width: int = 1280, scheme: Any = "light", javascript: bool = True
) -> Page:
    """A page in a context of its own. Requests for other files, messages of the console and errors are problems."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=javascript
    )
    page, own = context.new_page(), path.as_uri()
    page.set_default_timeout(20_000)
    page.on("request", lambda r: None if r.url == own or r.url.startswith("data:") else problems.append(r.url))
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(own)
    if javascript:
        for chart in ("#quality-chart", "#agreement-chart"):
            if page.query_selector(chart):
                page.wait_for_selector(f"{chart} svg")
    return page


@pytest.fixture
def visit(browser: Browser, demo: Path) -> Iterator[Visit]:
    """Opens a page of one's own; a problem fails the test."""
    problems: list[str] = []
    pages: list[Page] = []

    def open_page(path: Path = demo, **settings: Any) -> Page:
        pages.append(opened(browser, path, problems, **settings))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
    assert problems == []


@pytest.fixture(scope="module")
def shared(browser: Browser, demo: Path) -> tuple[Page, list[str]]:
    problems: list[str] = []
    return opened(browser, demo, problems), problems


@pytest.fixture
def page(shared: tuple[Page, list[str]]) -> Iterator[Page]:
    """The one page of tests that leave its chips, its theme and its charts as they were; a problem fails the test."""
    page, problems = shared
    yield page
    assert problems == []


def labels_of(page: Page) -> list[str]:
    """The labels of the points drawn in the first chart."""
    texts = page.locator(POINT).evaluate_all("points => points.map((point) => point.getAttribute('aria-label'))")
    return [text.split("label: ")[1].split(";")[0] for text in texts]


def title_of(page: Page) -> str:
    return page.locator("#quality-chart .role-title-text").text_content() or ""


def pixels(page: Page, trajectory: str, kind: str) -> np.ndarray:
    """What a canvas of a trajectory shows, [h, w, 4]."""
    uri = page.locator(f"[data-trajectory='{trajectory}'] canvas[data-kind={kind}]").evaluate(
        "canvas => canvas.toDataURL()"
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_the_file_is_small_and_has_no_addresses(demo: Path) -> None:
    text = demo.read_text(encoding="utf-8")
    assert BUNDLE < len(text.encode()) < 1_700_000
    page = text.replace(text[text.index("<script>const") : text.index("</script>", text.index("<script>const"))], "")
    assert "http://" not in page and "https://" not in page


def test_the_charts_are_drawn(page: Page) -> None:
    """A point for each run that has a value, and the cross of the one that failed."""
    drawn = labels_of(page)
    assert len(drawn) == 59 and set(drawn) == set(SAMPLERS)
    assert page.locator("#agreement-chart path[aria-roledescription=point]").count() == 35  # 34 distances and the cross


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_or_wider_than_the_screen(visit: Visit, width: int) -> None:
    page = visit(width=width)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate("document.body.scrollWidth <= document.body.clientWidth")
    outside = """() => [...document.querySelectorAll(".chart svg text")].filter((text) => {
        const own = text.getBoundingClientRect(), chart = text.closest(".chart").getBoundingClientRect();
        return text.textContent && (own.left < chart.left - 1 || own.right > chart.right + 1);
    }).map((text) => text.textContent)"""
    assert page.evaluate(outside) == []


def test_charts_follow_the_window(visit: Visit) -> None:
    page = visit()
    wide = page.locator("#quality-chart svg").bounding_box()
    page.set_viewport_size({"width": 600, "height": 900})
    page.wait_for_function("document.querySelector('#quality-chart svg').getBoundingClientRect().width < 600")
    assert wide is not None and wide["width"] > 1000


def test_a_chip_hides_its_sampler_everywhere(visit: Visit) -> None:
    page = visit()
    chip = page.get_by_role("button", name="ddim", exact=True)
    assert chip.get_attribute("aria-pressed") == "true"
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    page.wait_for_function(f"document.querySelectorAll('{POINT}').length === 54")
    assert set(labels_of(page)) == set(SAMPLERS) - {"ddim"}
    for selector in (".row", ".walk", "#runs tbody tr"):
        shown = page.locator(f"{selector}:not([hidden])")
        assert "ddim" not in {element.get_attribute("data-label") for element in shown.all()}
    page.get_by_role("button", name="None").click()
    page.wait_for_function(f"document.querySelectorAll('{POINT}').length === 0")
    assert page.locator("#runs tbody tr:visible").count() == 0
    page.get_by_role("button", name="All", exact=True).click()
    page.wait_for_function(f"document.querySelectorAll('{POINT}').length === 59")
    assert page.locator("#runs tbody tr:visible").count() == 60


def test_pointing_at_a_chip_makes_the_others_faint(page: Page) -> None:
    page.locator(".chip[data-label=heun]").hover()
    page.wait_for_function(f"document.querySelector('{POINT}').getAttribute('opacity') < 0.2")
    strong = page.locator(f"{POINT}[opacity='1']").all()
    assert {"label: heun" in (point.get_attribute("aria-label") or "") for point in strong} == {True}


def test_the_metric_and_the_cost_change_the_chart(visit: Visit) -> None:
    page = visit()
    assert title_of(page) == "Fréchet distance, lower is better"
    options = page.locator("#metric option").evaluate_all("options => options.map((option) => option.value)")
    assert options == ["frechet", "kernel", "precision", "entropy"]
    page.get_by_label("Metric").select_option("precision")
    page.wait_for_function(
        "document.querySelector('#quality-chart').textContent.includes('Precision, higher is better')"
    )
    page.get_by_role("button", name="Time").click()
    page.wait_for_function("document.querySelector('#quality-chart').textContent.includes('milliseconds a sample')")
    assert page.locator("#quality-chart svg").count() == 1
    assert page.locator("[data-cost=milliseconds]").get_attribute("aria-pressed") == "true"
    assert page.locator("[data-cost=nfe]").get_attribute("aria-pressed") == "false"


def test_a_hidden_sampler_stays_hidden_in_another_chart(visit: Visit) -> None:
    page = visit()
    page.locator(".chip[data-label=heun]").click()
    page.get_by_label("Metric").select_option("kernel")
    page.wait_for_function("document.querySelector('#quality-chart').textContent.includes('Kernel distance')")
    page.wait_for_function(f"document.querySelectorAll('{POINT}').length === 55")
    assert "heun" not in labels_of(page)


def test_a_tooltip_tells_what_matters(page: Page) -> None:
    page.locator(POINT).nth(4).hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    rows = page.locator("#vg-tooltip-element tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent.trim()))"
    )
    told = dict(rows)
    assert list(told) == ["sampler", "Fréchet distance", "evaluations", "steps", "time", "noise", "order", "samples"]
    assert told["sampler"] == "euler_maruyama" and told["evaluations"] == "100" and told["samples"] == "500"
    assert told["Fréchet distance"] == "6.76 [6.35, 7.25]" and told["time"] == "62.0 ms a sample"


def test_light_and_dark(visit: Visit) -> None:
    """The button changes paper, text, charts and marks; without it the system's scheme holds."""

    def look(page: Page) -> tuple[str, ...]:
        return (
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
            page.locator("#quality-chart .role-axis-label text").first.get_attribute("fill") or "",
            page.locator(POINT).first.get_attribute("fill") or "",
            page.locator(".chip .symbol").first.evaluate("mark => getComputedStyle(mark).fill"),
        )

    page, system = visit(), visit(scheme="dark")
    light, button = look(page), page.get_by_role("button", name="Dark")
    assert light[0] == "rgb(255, 255, 255)" and light[2] == colour(0)
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    page.wait_for_function(f"document.querySelector('{POINT}')?.getAttribute('fill') === '{colour(0, True)}'")
    assert button.get_attribute("aria-pressed") == "true"
    assert look(page) == look(system) and all(a != b for a, b in zip(look(page), light, strict=True))
    button.click()
    page.wait_for_function(f"document.querySelector('{POINT}')?.getAttribute('fill') === '{colour(0)}'")
    assert look(page) == light


def test_the_slider_shows_the_frames_of_every_trajectory(page: Page) -> None:
    """Pixel by pixel: at a part p of the way the frame nearest to p (n - 1), whatever n is."""
    _, trajectories = synthetic_pictures(synthetic_report())
    slider = page.get_by_role("slider")
    assert len({len(trajectory.captions) for trajectory in trajectories.values()}) > 3
    for part in (0.0, 0.5, 1.0):
        slider.fill(str(int(1000 * part)))
        assert slider.get_attribute("aria-valuetext") == f"{int(100 * part)} % of the way"
        for name in ("ddim-20", "heun-20", "rk45-20"):
            trajectory = trajectories[name]
            frame = math.floor(part * (len(trajectory.captions) - 1) + 0.5)
            assert page.locator(f"[data-trajectory='{name}'] .frame").inner_text() == trajectory.captions[frame]
            np.testing.assert_array_equal(pixels(page, name, "x")[..., :3], trajectory.x[frame])
            np.testing.assert_array_equal(pixels(page, name, "x0")[..., :3], trajectory.x0_hat[frame])
    slider.fill("0")
    before = page.locator("[data-trajectory='ddim-20']").screenshot()
    slider.focus()
    page.keyboard.press("End")
    assert page.locator("[data-trajectory='ddim-20']").screenshot() != before


def test_play_and_pause(page: Page) -> None:
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("Number(document.querySelector('#way').value) > 100")
    page.get_by_role("button", name="Pause").click()
    assert page.locator("#play").get_attribute("aria-pressed") == "false"
    value = page.locator("#way").input_value()
    page.wait_for_timeout(150)
    assert page.locator("#way").input_value() == value
    page.locator("#way").fill("900")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('#play').getAttribute('aria-pressed') === 'false'")
    assert page.locator("#way").input_value() == "1000"


def test_samples_within_a_budget(page: Page) -> None:
    """Of each sampler its run of most evaluations within the budget; what failed or is too long is said."""
    runs = synthetic_report()["runs"]
    assert page.locator("#budget").input_value() == "50"  # what is enough
    for budget in (5, 20, 100, 212):
        page.locator("#budget").select_option(str(budget))
        for label in SAMPLERS:
            within = [run["nfe"] for run in runs if run["label"] == label and run["nfe"] <= budget]
            row = page.locator(f".row[data-label='{label}']")
            text = row.inner_text()
            if within:
                assert f"{max(within)} evaluations" in text and row.locator("figure:visible").count() == 1
            else:
                assert "no run within this budget" in text
    page.locator("#budget").select_option("5")
    assert "failed: samples that are not finite" in page.locator(".row[data-label=langevin]").inner_text()


def test_the_table_sorts(page: Page) -> None:
    """By numbers and by words, up and down; what is missing comes last."""
    header = page.locator("#runs thead th").filter(has_text="Fréchet distance")
    read = "rows => rows.map((row) => JSON.parse(row.dataset.keys))"

    def column(index: int) -> list[Any]:
        return [keys[index] for keys in page.locator("#runs tbody tr").evaluate_all(read)]

    assert header.get_attribute("aria-sort") == "none"
    header.get_by_role("button").click()
    found = column(5)
    assert header.get_attribute("aria-sort") == "ascending" and found[:-2] == sorted(found[:-2])
    assert found[-2:] == [None, None]
    header.get_by_role("button").press("Enter")
    found = column(5)
    assert header.get_attribute("aria-sort") == "descending" and found[:-2] == sorted(found[:-2], reverse=True)
    assert found[-2:] == [None, None]
    page.locator("#runs thead th").first.get_by_role("button").click()
    assert column(0) == sorted(column(0)) and header.get_attribute("aria-sort") == "none"
    assert page.locator("#announcement").inner_text() == "sorted by sampler, ascending"


def test_a_chart_can_be_saved(page: Page, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.locator(".save[data-chart=quality-chart]").click()
    assert download.value.suggested_filename == "frechet-nfe.svg"
    download.value.save_as(tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


def test_the_keyboard_reaches_everything_and_focus_is_seen(visit: Visit) -> None:
    page = visit()
    seen: list[str] = []
    outlined = """() => { const e = document.activeElement, s = getComputedStyle(e);
        const name = e.id || e.dataset.label || e.dataset.cost || e.className;
        return [name, s.outlineStyle, parseFloat(s.outlineWidth)] }"""
    while "way" not in seen and len(seen) < 40:
        page.keyboard.press("Tab")
        name, style, width = page.evaluate(outlined)
        assert style != "none" and width >= 1, name
        seen.append(name)
    expected = ["theme", *SAMPLERS, "all", "none", "metric", "nfe", "milliseconds", "budget", "play", "way"]
    assert [name for name in seen if name in expected] == expected
    page.keyboard.press("ArrowRight")
    assert page.locator("#way").input_value() == "5"
    page.locator(".chip[data-label=heun]").focus()
    page.keyboard.press("Space")
    assert page.locator(".chip[data-label=heun]").get_attribute("aria-pressed") == "false"


def test_without_scripts_words_and_tables_remain(visit: Visit) -> None:
    page = visit(javascript=False)
    assert "dpmpp_3m in 50 evaluations is enough" in page.locator(".recommendation").inner_text()
    assert page.locator(".card:visible").count() == 5
    assert page.locator("#runs tbody tr:visible").count() == 60
    assert "not finite at step 3" in page.locator("#runs tr[data-label=langevin]").first.inner_text()
    assert "1.9120" in page.locator("#likelihood").inner_text()
    assert page.locator(".strip img:visible").count() == 59
    assert page.locator("#walk:visible, .legend:visible, #metric:visible").count() == 0


def few(report: dict[str, Any]) -> dict[str, Any]:
    """The report with five samplers and one metric of quality, which is quickly drawn."""
    report["metrics"] = {metric: report["metrics"][metric] for metric in ("frechet", "flow_distance")}
    report["runs"] = [run for run in report["runs"] if run["label"] in list(SAMPLERS)[3:8]]
    return report


def test_marks_in_texts_are_only_text(visit: Visit, tmp_path: Path) -> None:
    report = few(synthetic_report())
    nasty = "</script><b class=x>ddim</b> \"'&"
    for run in report["runs"]:
        if run["label"] == "ddim":
            run["label"] = nasty
    report |= {"title": nasty, "warnings": [nasty], "protocol": {nasty: nasty}}
    report["metrics"] = {**report["metrics"], "frechet": {**report["metrics"]["frechet"], "title": nasty}}
    report["baselines"][0]["label"] = nasty
    path = tmp_path / "nasty.html"
    path.write_text(comparison_html(report, *synthetic_pictures(report)), encoding="utf-8")
    page = visit(path)
    assert page.locator("b.x").count() == 0
    assert page.locator("h1").inner_text() == nasty and page.locator(".warnings").inner_text() == nasty
    assert title_of(page).startswith(nasty)
    assert page.locator(".chip").nth(1).inner_text() == nasty
    page.locator(".chip").nth(1).click()
    page.wait_for_function(f"document.querySelectorAll('{POINT}').length === 19")


def test_variants_have_chips_of_their_own(visit: Visit, tmp_path: Path) -> None:
    report = few(synthetic_report())
    other = copy.deepcopy(report["runs"])
    for run in other:
        run |= {"variant": "raw", "id": f"{run['id']}-raw"}
    report["runs"] += other
    path = tmp_path / "variants.html"
    path.write_text(comparison_html(report, *synthetic_pictures(report)), encoding="utf-8")
    page = visit(path)
    page.wait_for_function(f"document.querySelectorAll('{POINT}').length === 48")
    page.locator(".chip[data-variant=raw]").click()
    page.wait_for_function(f"document.querySelectorAll('{POINT}').length === 24")
    assert page.locator("#runs tbody tr:visible").count() == 25
    assert page.locator("#runs thead th").nth(1).inner_text() == "variant"


def test_a_page_of_nothing(visit: Visit, tmp_path: Path) -> None:
    """All runs failed, and there are no pictures: the page says so, and has no empty sections."""
    report = synthetic_report()
    report |= {"likelihood": {}, "warnings": [], "baselines": [], "protocol": {}, "reference": {}}
    for run in report["runs"]:
        run |= {"values": {}, "failed": "out of memory", "timing": {}}
    path = tmp_path / "nothing.html"
    path.write_text(comparison_html(report, {}, {}), encoding="utf-8")
    page = visit(path, width=390)
    assert "no sampler can be recommended" in page.locator(".recommendation").inner_text()
    assert "nothing to draw" in page.locator("#quality").inner_text()
    assert page.locator("#samples, #walk, #agreement, #likelihood, .card").count() == 0
    assert page.locator("#runs tbody tr").count() == 60
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_colours_and_clear_pixels_survive(visit: Visit, tmp_path: Path) -> None:
    """Pictures that are no row of squares have no gaps of the page's making between tiles."""
    report = few(synthetic_report())
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (2, 3, 20, 50, 4), dtype=np.uint8)
    greys = np.repeat(rng.integers(0, 256, (2, 3, 20, 50, 1), dtype=np.uint8), 4, axis=-1)
    for frames in (colours, greys):
        frames[..., 3] = 255 * (rng.random(frames.shape[:-1]) < 0.5)  # clear or not
        frames[frames[..., 3] == 0] = 0
    trajectories = {
        run["id"]: Trajectory(x, x0_hat, ["a", "b", "c"])
        for run, (x, x0_hat) in zip(report["runs"][2:4], (colours, greys))
    }
    path = tmp_path / "colour.html"
    path.write_text(
        comparison_html(report, {name: trajectory.x[0] for name, trajectory in trajectories.items()}, trajectories),
        encoding="utf-8",
    )
    page = visit(path)
    page.get_by_role("slider").fill("500")
    page.wait_for_function("document.querySelector('.frame').textContent === 'b'")
    for name, trajectory in trajectories.items():
        np.testing.assert_array_equal(pixels(page, name, "x"), trajectory.x[1])
        np.testing.assert_array_equal(pixels(page, name, "x0"), trajectory.x0_hat[1])
    assert page.locator(".walk .strip").first.evaluate("strip => strip.style.getPropertyValue('--tiles').trim()") == "1"
