"""A report in a real browser, from a folder: views, filters, keys, and what a reader with assistance hears."""

import contextlib
import time

import numpy as np
import pytest

from maskx_jax.coco import rle
from maskx_jax.report.matches import OUTCOMES
from tests.report.made import results

VIEWS = ("scores", "classes", "curves", "errors", "confusion", "calibration", "learning", "gallery")


def until(browser, script, *arguments, seconds=10.0):
    """Return the value of a script as soon as it is true."""
    end = time.monotonic() + seconds
    while True:
        value = browser.execute_script(f"return {script}", *arguments)
        if value:
            return value
        assert time.monotonic() < end, f"not true within {seconds} s: {script}"
        time.sleep(0.02)


@pytest.fixture
def opened(browser, page):
    """Return what opens a view; afterwards nothing may stand in the console, and nothing have come from elsewhere."""

    def view(name):
        browser.get("about:blank")
        browser.get(f"{page.as_uri()}#{name}")
        until(browser, "document.querySelector('main h2') !== null")
        if name.startswith("gallery"):
            until(browser, "document.querySelector('#count')?.textContent")
        return browser

    browser.get_log("browser")
    yield view
    assert browser.get_log("browser") == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith(("file://", "data:")) for name in loaded), loaded


@contextlib.contextmanager
def width_of(browser, width, height):
    size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def press(browser, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def key(name):
    from selenium.webdriver.common.keys import Keys

    return getattr(Keys, name)


def counted(browser):
    """Return the numbers in the line above the cards: images, of how many, objects and detections."""
    text = browser.execute_script("return document.querySelector('#count').textContent")
    return [int(word.replace(",", "")) for word in text.split() if word[0].isdigit()]


def choose(browser, name, value):
    script = """
        const field = document.querySelector(`[name="${arguments[0]}"]`);
        field.value = arguments[1];
        field.dispatchEvent(new Event("change"));"""
    browser.execute_script(script, name, value)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_opens_on_a_desk_and_on_a_phone(opened, view):
    for size in ((1280, 900), (375, 800)):
        with width_of(opened(view), *size):
            browser = opened(view)
            assert browser.execute_script("return document.querySelector('[aria-current]').hash") == f"#{view}"
            overflow = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
            assert overflow <= 0, f"{view} is {overflow} pixels wider than a screen of {size[0]}"
            # What was drawn is more than its title.
            until(browser, "document.querySelectorAll('main table, main svg.chart, main article').length > 0")


def test_titles_of_models_and_classes_are_text_and_no_markup(opened):
    browser = opened("scores")
    assert "<b>second</b>" in browser.execute_script("return document.querySelector('main').textContent")
    assert browser.execute_script("return document.querySelectorAll('main b').length") == 0


def test_the_table_has_the_scores(opened, made):
    from maskx_jax.evaluation import metrics

    dataset, models = made
    measured = metrics.score(dataset.ground_truth, models[0].results, ("segm",), dataset.groups)
    script = """return [...document.querySelectorAll('table')].filter((t) => t.caption.textContent === 'Masks')
        .flatMap((t) => [...t.tBodies[0].rows].map((r) => [...r.cells].map((c) => c.textContent)))"""
    rows = {(row[0], row[1]): row for row in opened("scores").execute_script(script)}
    assert rows["B", "first"][2] == f"{100 * measured['segm']['B']['AP']:.1f}"


@pytest.mark.parametrize(
    ("filters", "keeps"),
    [
        ({"min": "0.3"}, lambda shown: shown["score"] >= 0.3),
        ({"min": "0"}, lambda shown: True),
        ({"min": "0.3", "class": "2"}, lambda shown: (shown["score"] >= 0.3) & (shown["label"] == 2)),
        ({"min": "0.3", "group": "B"}, lambda shown: (shown["score"] >= 0.3) & (shown["label"] >= 4)),
        ({"min": "0.6", "max": "0.8"}, lambda shown: (shown["score"] >= 0.6) & (shown["score"] <= 0.8)),
        ({"min": "0", "size": "0"}, lambda shown: shown["size"] == 0),
        *(
            ({"min": "0", "outcome": name}, lambda shown, name=name: shown["outcome"] == OUTCOMES.index(name))
            for name in ("correct", "class", "location", "duplicate", "background")
        ),
    ],
)
def test_a_filter_keeps_what_it_says(opened, shown, filters, keeps):
    browser = opened("gallery")
    for name, value in filters.items():
        choose(browser, name, value)
    kept = keeps(shown)
    objects = keeps({**shown["truth"], "score": np.float64(0.9), "outcome": -1})
    if "outcome" in filters:
        objects = np.zeros(len(shown["truth"]["label"]), bool)
    elif "max" in filters:
        objects = np.ones(len(shown["truth"]["label"]), bool)
    objects = np.broadcast_to(objects, shown["truth"]["label"].shape)
    kept = np.broadcast_to(kept, shown["label"].shape)
    images = set(shown["image"][kept].tolist()) | set(shown["truth"]["image"][objects].tolist())
    assert counted(browser) == [len(images), 60, int(kept.sum() + objects.sum())]


@pytest.fixture(scope="module")
def shown(made):
    """Return the columns of the gallery, of the first model and of the truth."""
    from maskx_jax.report.analysis import analyse
    from maskx_jax.report.bootstrap import draws
    from maskx_jax.report.matches import Prepared

    dataset, (first, _) = made
    prepared = Prepared(dataset.ground_truth, dataset.kinds, 100)
    found = analyse(dataset, first, prepared, draws(60, 2))
    matches = found.matches["segm"]
    area = np.array(rle.areas([first.results[place]["segmentation"] for place in matches.detection]))
    seen = matches.score >= 0.05
    columns = {
        "image": matches.image,
        "label": matches.label,
        "score": matches.score,
        "outcome": found.outcomes["segm"],
    }
    columns |= {"size": np.digitize(area, (32**2, 96**2))}
    truth = {"image": matches.object_image, "label": matches.object_label, "missed": matches.missed}
    truth |= {"size": np.digitize(prepared.area[matches.object_number], (32**2, 96**2))}
    return {name: column[seen] for name, column in columns.items()} | {"truth": truth}


def test_missed_objects_and_the_other_model_can_be_asked_for(opened, shown):
    browser = opened("gallery?outcome=missed")
    missed = shown["truth"]["missed"]
    assert counted(browser) == [len(set(shown["truth"]["image"][missed].tolist())), 60, int(missed.sum())]
    choose(browser, "model", "1")
    assert counted(browser)[2] > missed.sum()
    assert "model=1" in browser.current_url and "outcome=missed" in browser.current_url
    choose(browser, "class", "0")
    choose(browser, "group", "B")
    assert "No image matches" in browser.execute_script("return document.querySelector('#count').textContent")


def test_worst_and_best_images_come_first(opened):
    def qualities(order):
        browser = opened(f"gallery?order={order}&min=0")
        script = "return [...document.querySelectorAll('article > p')].map((p) => p.textContent)"
        return [float(text.split()[1]) for text in browser.execute_script(script) if text.startswith("F1")]

    worst, best = qualities("worst"), qualities("best")
    assert worst == sorted(worst) and best == sorted(best, reverse=True) and worst[0] < best[0]


def test_masks_are_drawn_as_they_are_scored(opened, made):
    browser = opened("gallery")
    masks = [result["segmentation"] for result in results(made[0].ground_truth, seed=7)[:40]]
    script = """return arguments[0].map((mask) => {
        const [height, width] = mask.size;
        const found = maskx.masks.bitmap(mask.counts, [width, height], [width, height]);
        return [found.x, found.y, found.width, found.height, [...found.inside]]; })"""
    for mask, (x, y, width, height, inside) in zip(masks, browser.execute_script(script, masks), strict=True):
        drawn = np.zeros(mask["size"], bool)
        drawn[y : y + height, x : x + width] = np.reshape(inside, (height, width))
        np.testing.assert_array_equal(drawn, rle.decode(mask))


# Pixels of the first prediction that anything is drawn on; read from a copy, as the page itself reads none.
COLORED = """(() => {
    const canvas = document.querySelector('article[data-drawn] [data-side=prediction] canvas');
    if (!canvas) return 0;
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
    copy.drawImage(canvas, 0, 0);
    return copy.getImageData(0, 0, canvas.width, canvas.height).data.filter((v, i) => i % 4 === 3 && v > 0).length;
})()"""


def test_masks_and_boxes_toggle_by_their_keys(opened):
    browser = opened("gallery?order=best")
    both = until(browser, COLORED)
    press(browser, "m")
    until(browser, f"{COLORED} < {both}")
    press(browser, "b")
    until(browser, f"{COLORED} === 0")
    press(browser, "m")
    until(browser, f"{COLORED} > 0")
    press(browser, "b")


def test_all_of_it_works_without_a_mouse(opened):
    browser = opened("scores")
    focused = "document.activeElement"
    for _ in range(5):
        press(browser, key("TAB"))
        # A window that has just been opened may not have the keyboard yet.
        if browser.execute_script(f"return {focused} !== document.body"):
            break
    assert browser.execute_script(f"return {focused}.id") == "skip"
    for _ in range(20):
        press(browser, key("TAB"))
        if browser.execute_script(f"return {focused}.hash") == "#gallery":
            break
    press(browser, key("ENTER"))
    until(browser, "document.querySelector('article')")
    for _ in range(40):
        press(browser, key("TAB"))
        if browser.execute_script(f"return {focused}.className") == "open":
            break
    first = browser.execute_script(f"return {focused}.textContent")
    press(browser, key("ENTER"))
    until(browser, "document.querySelector('dialog[open] .lists li')")
    assert browser.execute_script("return document.querySelector('dialog h2').textContent") == first
    # Ground truth, the model that is chosen, and the other one.
    captions = "[...document.querySelectorAll('dialog figcaption')].map((caption) => caption.textContent)"
    assert browser.execute_script(f"return {captions}") == ["Ground truth", "first", "<b>second</b>"]
    press(browser, key("ARROW_RIGHT"))
    until(browser, "document.querySelector('dialog h2').textContent !== arguments[0]", first)
    second = browser.execute_script("return document.querySelector('dialog h2').textContent")
    press(browser, key("ESCAPE"))
    until(browser, "!document.querySelector('dialog[open]')")
    until(browser, f"{focused}.textContent === arguments[0]", second)
    press(browser, "n")
    assert browser.execute_script("return document.querySelector('#page-number').textContent") == "Page 2 of 3"
    press(browser, "p")
    assert browser.execute_script("return document.querySelector('#page-number').textContent") == "Page 1 of 3"


@pytest.mark.parametrize("view", ["scores", "classes", "confusion", "gallery"])
def test_what_can_be_used_has_a_name(opened, view):
    browser = opened(view)
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    usable = {
        "button",
        "link",
        "combobox",
        "searchbox",
        "spinbutton",
        "checkbox",
        "image",
        "table",
        "region",
        "textbox",
    }
    roles = [(node["role"]["value"], node.get("name", {}).get("value")) for node in tree if not node.get("ignored")]
    nameless = [role for role, name in roles if role in usable and not name]
    assert len(roles) > 20 and not nameless
    assert browser.execute_script("return document.querySelectorAll('h1').length") == 1


def test_a_missing_data_file_is_said_in_its_view(browser, made, tmp_path):
    from maskx_jax.report import write

    page = write(made[0], made[1][:1], tmp_path / "report", num_draws=2)
    (tmp_path / "report/data/curves-0-segm.js").unlink()
    browser.get(f"{page.as_uri()}#curves")
    until(browser, "document.querySelector('[role=alert]')")
    assert "curves-0-segm.js is missing" in browser.execute_script("return document.querySelector('main').textContent")
    browser.get_log("browser")
