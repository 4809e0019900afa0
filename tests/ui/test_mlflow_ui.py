"""A person's way through the MLflow UI in headless Chromium: study, runs, charts by method, memory, completions.

`make ui-test` runs it: it takes a minute or two and needs Debian's chromium. It looks at the
store BAKEOFF_UI_STORE where that is set, else at one that it makes; screenshots go to the folder SCREENSHOTS, if set.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.ui
SMALL = ["batch.prompts=4", "batch.group_size=4", "sft.steps=3", "task.heldout=16", "evaluation.every=2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The store to look at."""
    if os.environ.get("BAKEOFF_UI_STORE"):
        return os.environ["BAKEOFF_UI_STORE"]
    folder = tmp_path_factory.mktemp("ui")
    few = [*SMALL, "budget={unit: updates, limit: 4}", "tracking.completions_every=2"]
    environment = os.environ | {"BAKEOFF_CACHE": str(folder / "cache")}
    subprocess.run([sys.executable, "-m", "bakeoff", "sweeps=methods", *few], cwd=folder, env=environment, check=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def address(store):
    """The UI on the store, answering."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["ui", "--backend-store-uri", store, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *arguments], stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/#/experiments"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def page():
    """A page of headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def picture(page, name):
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=str(Path(os.environ["SCREENSHOTS"]) / f"{name}.png"))


def close_assistant(page):
    """MLflow opens a panel of its own beside every page, until it is closed."""
    button = page.get_by_role("button", name="Close", exact=True)
    if button.count():
        button.first.click()


def test_from_the_study_to_a_chart_by_method_and_to_completions(store, address, page):
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("bakeoff").experiment_id
    (parent, *_) = client.search_runs([experiment], "tags.study = 'methods' and tags.kind = 'sweep'")
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")

    chosen = quote("tags.study = 'methods'")
    page.goto(f"{address}/{experiment}/runs?searchFilter={chosen}")
    row = page.locator(".ag-row").filter(has_text=parent.info.run_name[:15]).first
    row.wait_for()
    close_assistant(page)
    row.locator("button").first.click()  # the plus beside the parent's name
    for child in children:
        page.get_by_role("link", name=child.info.run_name, exact=True).first.wait_for()
    picture(page, "runs")

    page.get_by_role("button", name="Group by").click()
    page.get_by_text("algorithm", exact=True).click()
    page.goto(f"{page.url}&compareRunsMode=CHART")
    search = page.get_by_placeholder("Search metric charts")
    for metric in ("reward/mean", "memory/actor_update/critic_parameters_mb"):
        search.fill(metric)
        page.get_by_text(metric, exact=True).first.wait_for()
    search.fill("eval/.*accuracy|memory/peak_mb|memory/weights_critic")
    page.get_by_text("eval/greedy_accuracy", exact=True).first.wait_for()
    page.wait_for_timeout(5000)  # plots draw themselves
    picture(page, "charts")

    page.goto(f"{address}/{experiment}/runs/{parent.info.run_id}")
    page.get_by_text("the child runs").first.wait_for()
    page.goto(f"{address}/{experiment}/runs/{children[0].info.run_id}/artifacts/completions.json")
    for column in ("prompt", "completion", "answer", "reward"):
        page.get_by_text(column, exact=True).first.wait_for()
    page.get_by_text("=").first.wait_for()
    page.wait_for_timeout(2000)
    picture(page, "completions")


def test_the_printed_addresses_open_the_runs_and_their_curves_by_arm(store, address, page):
    port = address.split(":")[2].split("/")[0]
    environment = os.environ | {"MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-m", "bakeoff.ui", port]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    runs, curves = (line.split()[1] for line in printed.splitlines())
    page.goto(runs)
    page.locator(".ag-row").filter(has_text="methods").first.wait_for()
    page.goto(curves)
    page.get_by_text("Group: grpo").first.wait_for()
    page.get_by_text("eval/greedy_accuracy", exact=True).first.wait_for()
    picture(page, "curves")
