"""The page in a real browser, over a real training: everything that a visitor can do.

It needs Debian's Chromium (or Chrome) on the PATH and `pip install playwright`, which bring no
dependency of the library and are no part of the extra [dev].
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from entrocraft.lab.records import read_records
from entrocraft.steering import read_steered
from tests.lab.report.test_report import records, write_run
from tests.lab.training.runs import config_file, keys, make_home, obey_ctrl_c

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
if BROWSER is None:
    pytest.skip("no chromium on the PATH", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

STEPS = 3000
playwright.expect.set_options(timeout=30_000)


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "not within a minute"
        time.sleep(0.1)
    return found


@pytest.fixture
def started(tmp_path):
    """A training and the page over it and a finished run: (address, run directory, training)."""
    home, runs = make_home(tmp_path / "home"), tmp_path / "runs"
    write_run(runs / "old", records(), name="old")
    values = keys(home, runs / "new", name="new", steps=STEPS, save_every=0)
    values |= {"control": {"schedule": "constant(1.5)"}}
    values |= {"evaluation": {"probe_every": 0, "every": 0}}
    file = config_file(tmp_path / "new.yaml", values)
    entrocraft = [sys.executable, "-m", "entrocraft"]
    quiet = {"stderr": subprocess.DEVNULL, "text": True, "start_new_session": True}
    quiet["preexec_fn"] = obey_ctrl_c
    training = subprocess.Popen([*entrocraft, "train", file], stdout=subprocess.DEVNULL, **quiet)
    watch = subprocess.Popen(
        [*entrocraft, "watch", str(runs), "--port", "0"], stdout=subprocess.PIPE, **quiet
    )
    try:
        address = watch.stdout.readline().rpartition(" at ")[2].strip()
        until(lambda: len(read_records(runs / "new" / "metrics.jsonl")) > 3)
        yield address, runs / "new", training
    finally:
        for process in (watch, training):
            process.send_signal(signal.SIGINT)
            process.wait(30)
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)


@pytest.fixture
def visit(started):
    """Open the page as another visitor: visit(width, dark) -> page."""
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])

        def open_page(width=1280, scheme="light"):
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.errors = []
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.goto(started[0])
            page.wait_for_selector("#chart-entropy .scatterlayer .trace")
            page.wait_for_selector("#editor .shapelayer path[data-index='1']", state="attached")
            return page

        yield open_page
        browser.close()


@pytest.mark.slow
def test_a_visitor_follows_and_steers_a_training(started, visit, tmp_path):
    _, run, training = started
    page = visit()
    legend = page.locator("#chart-entropy .legendtext")
    assert {"old", "new"} <= set(legend.all_text_contents())

    # charts grow by themselves
    step = int(page.locator("#state").inner_text().split()[2])
    until(lambda: int(page.locator("#state").inner_text().split()[2]) > step)

    # type a schedule: a bad one is refused in place, a good one is obeyed
    page.fill("#draft", "liner(1, 2, 3)")
    playwright.expect(page.locator("#wrong")).to_contain_text("not a schedule")
    assert page.locator("#apply").is_disabled()
    page.fill("#draft", f"piecewise([(0, 1), ({STEPS // 2}, 2), ({STEPS}, 1)])")
    playwright.expect(page.locator("#apply")).to_be_enabled()
    page.click("#apply")
    until(lambda: len(read_steered(run).changes) == 1)
    changed, text = read_steered(run).changes[0]
    assert text == f"piecewise([(0, 1), ({STEPS // 2}, 2), ({STEPS}, 1)])"
    until(lambda: any(row["step"] > changed for row in read_records(run / "metrics.jsonl")))
    for row in read_records(run / "metrics.jsonl"):
        target = 1 + row["step"] / (STEPS // 2) if row["step"] >= changed else 1.5
        assert row["entropy/target"] == pytest.approx(target)
    playwright.expect(page.locator("#chart-entropy")).to_contain_text("new schedule")

    # drag the middle point up
    page.locator("#editor").scroll_into_view_if_needed()
    middle = page.locator("#editor path[data-index='1']").first.bounding_box()
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y + 40, steps=8)
    page.mouse.up()
    draft = until(
        lambda: (now := page.input_value("#draft")) != text and now.startswith("piece") and now
    )
    (step, level) = eval_points(draft)[1]
    assert 0 < step < STEPS // 2
    assert level < 2
    page.click("#apply")
    until(lambda: read_steered(run).schedule == draft)

    # pause, go on
    page.click("#pause")
    playwright.expect(page.locator("#state")).to_contain_text("paused")
    rows = len(read_records(run / "metrics.jsonl"))
    playwright.expect(page.locator("#pause")).to_have_text("Go on")
    time.sleep(1)
    assert len(read_records(run / "metrics.jsonl")) <= rows + 1
    page.click("#pause")
    playwright.expect(page.locator("#state")).to_contain_text("running")

    # export what is shown, after one run was hidden by this visitor alone
    other = visit(390, "dark")
    page.get_by_label("old").uncheck()
    playwright.expect(legend.filter(has_text="old")).to_have_count(0)
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "shown.csv")
    with (tmp_path / "shown.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {"new"}
    assert {"step", "entropy/target", "reward", "schedule"} <= set(rows[0])
    names = other.locator("#chart-entropy .legendtext").all_text_contents()
    assert {"old", "new"} <= set(names), "visitors do not disturb one another"

    # a phone, dark: nothing is cut off at the right, and the page is dark
    assert other.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
    assert other.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
    assert other.locator("article").count() == 4

    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#stop")
    assert training.wait(60) == 130
    assert read_steered(run).state == "stopped"
    playwright.expect(page.locator("#steer")).to_be_hidden()
    assert page.errors + other.errors == []


def eval_points(text):
    """The points of "piecewise([(0, 1), ...])"."""
    return json.loads(text.removeprefix("piecewise(")[:-1].replace("(", "[").replace(")", "]"))
