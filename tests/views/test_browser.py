"""JupyterLab in a real browser: the buttons work while a game is played, the slider moves the histogram, both themes read.

Needs Chromium (found on the PATH, or named by CHROMIUM) and the extra `browser`. Screenshots are kept in
`build/screenshots`. What is opened is a small notebook of its own, so that a change to the course cannot hide a broken widget.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "screenshots"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
CELLS = [
    "import adadfq_lab as lab\n"
    'P = lab.load_teacher("fashion_mnist_resnet20")\n'
    "schedule = lab.Schedule(batch=8, warmup=3, observe=6)\n"
    'game = lab.Game(P, lab.quantize(P, "3w3a"), lab.adadfq(), schedule=schedule, gains_every=1)\n'
    "run = lab.LiveRun(game, rounds=5000)",
    "explorer = lab.bounds_explorer(run)\nexplorer",
    "run.start()",
]
POINTS = "() => { const p = document.querySelector('.js-plotly-plot'); return p && p.data ? p.data[0].y.length : -1 }"
SLIDER = "[role=slider], .noUi-handle"


def wait_for(what, seconds=120.0, step=0.3):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := what():
            return value
        time.sleep(step)
    raise AssertionError("the browser did not show what was waited for")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab_server(tmp_path_factory):
    """(url, token, folder) of a JupyterLab that runs for the tests of this file."""
    folder, port, token = tmp_path_factory.mktemp("lab"), free_port(), secrets.token_hex(8)
    settings = tmp_path_factory.mktemp("settings")
    (settings / "overrides.json").write_text(
        json.dumps({"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}})
    )
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    options += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    options += ["--LabApp.extension_manager=readonly", f"--LabApp.app_settings_dir={settings}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    environment.pop("ADADFQ_LAB_FAST", None)
    for kind in ("SETTINGS", "WORKSPACES"):  # not the user's own: a theme that a test chose would stay
        environment[f"JUPYTERLAB_{kind}_DIR"] = str(tmp_path_factory.mktemp(kind.lower()))
    log = (folder / "server.log").open("w")
    command = [sys.executable, "-m", "jupyterlab", *options]
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: server.poll() is not None or answers(f"{url}/api?token={token}"))
        assert server.poll() is None, (folder / "server.log").read_text()
        yield url, token, folder
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@contextmanager
def opened(lab_server, name, cells, *, dark=False):
    """A page of JupyterLab on a new notebook of these cells, its kernel ready."""
    from playwright.sync_api import sync_playwright

    url, token, folder = lab_server
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(notebook, folder / name)
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 2000})
        page.goto(f"{url}/lab/workspaces/{secrets.token_hex(4)}/tree/{name}?token={token}&reset", timeout=120_000)
        ready = "window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady === true"
        page.wait_for_function(f"() => {ready}", timeout=180_000)
        if dark:
            page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
        page.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
        yield page
        page.evaluate("() => { jupyterapp.shell.currentWidget.sessionContext.shutdown() }")
        browser.close()


def click(page, name):
    page.evaluate(
        "name => [...document.querySelectorAll('button.jupyter-button')].find(b => b.innerText.trim() === name).click()", name
    )


def shot(page, name):
    page.screenshot(path=SHOTS / f"{name}.png")


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; apt-get install chromium, or set CHROMIUM")


@needs_chromium
def test_a_game_is_played_and_steered_in_the_browser(lab_server):
    """Points arrive; the slider changes the histogram and the band; pause and stop end the growth, resume does not."""
    with opened(lab_server, "steer.ipynb", CELLS) as page:
        wait_for(lambda: page.evaluate(POINTS) > 4, 240)
        shot(page, "playing")
        text = "() => [...document.querySelectorAll('.jp-OutputArea-output svg[role=img]')].map(s => s.outerHTML).join()"
        band = "() => { const d = document.querySelector('.js-plotly-plot').data; return d[1].y[d[1].y.length - 1] }"
        before = page.evaluate(text)
        handle = page.locator(".noUi-handle").first
        handle.focus()
        for _ in range(6):
            handle.press("ArrowRight")
        wait_for(lambda: page.evaluate(band) > 0.3)
        assert page.evaluate(text) != before
        assert "λ_l" in page.evaluate("() => document.querySelector('.js-plotly-plot').innerHTML")
        shot(page, "bounds_moved")

        click(page, "Pause")
        wait_for(lambda: "paused" in page.inner_text(".jp-Notebook"))
        count = page.evaluate(POINTS)
        time.sleep(2)
        assert page.evaluate(POINTS) == count
        click(page, "Resume")
        wait_for(lambda: page.evaluate(POINTS) > count)
        click(page, "Stop")
        wait_for(lambda: "stopped" in page.inner_text(".jp-Notebook"))
        axes = page.evaluate(
            "() => { const {yaxis, yaxis3} = document.querySelector('.js-plotly-plot')._fullLayout; "
            "return [yaxis.range, yaxis3.type]; }"
        )
        assert axes == [[0, 1], "log"], "H' keeps its whole scale while the losses change theirs"
        count = page.evaluate(POINTS)
        time.sleep(2)
        assert page.evaluate(POINTS) == count
        shot(page, "stopped")


@needs_chromium
def test_a_run_made_in_an_earlier_cell_is_drawn_beside_another_figure(lab_server):
    """As in notebook 06: a static figure on the page, the run in one cell, its start in a later one; it was an empty chart."""
    shown = 'lab.show(lab.figures.curves({"a": [1, 2]}, [1, 2], title="t", x="x", y="y"))'
    with opened(lab_server, "later.ipynb", [CELLS[0].replace("5000", "3"), shown, *CELLS[1:]]) as page:
        last = (
            "() => { const p = [...document.querySelectorAll('.js-plotly-plot')].pop(); return p?.data?.[0]?.y?.length ?? -1 }"
        )
        wait_for(lambda: page.evaluate(last) >= 3, 240)
        shot(page, "later")


@needs_chromium
def test_the_dark_theme_is_readable(lab_server):
    """In JupyterLab's dark theme, text of the recorded-data widgets and of the live figure contrasts with the page."""
    cells = [CELLS[0].replace("5000", "3"), "lab.bounds_explorer()", "lab.logit_playground()", "run.start()"]
    with opened(lab_server, "dark.ipynb", cells, dark=True) as page:
        wait_for(lambda: page.evaluate(POINTS) >= 3, 240)
        shot(page, "dark")
        luminance = """() => {
            const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255;
                return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
                return 0.2126 * r + 0.7152 * g + 0.0722 * b };
            const page = light(getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor);
            const texts = [...document.querySelectorAll('svg[role=img] text, .js-plotly-plot .xtick text')];
            const ratio = l => (Math.max(l, page) + 0.05) / (Math.min(l, page) + 0.05);
            return texts.map(t => ratio(light(getComputedStyle(t).fill)))
        }"""
        ratios = page.evaluate(luminance)
        assert len(ratios) > 20
        assert min(ratios) > 3, "some text is hard to read on the dark page"


@needs_chromium
def test_the_dashboard_is_a_page_of_its_own():
    """voila serves the bounds explorer, a recorded run and the images of G; dragging a bound redraws the histogram."""
    pytest.importorskip("voila", reason="needs the extra `dashboard`")
    from playwright.sync_api import sync_playwright

    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "voila", "notebooks/dashboard.ipynb", "--no-browser"]
    command += ["--Voila.ip=127.0.0.1", f"--port={port}"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1200, "height": 1900})
            wait_for(lambda: server.poll() is not None or listens(port))
            page.goto(url, timeout=120_000)
            drawing = "() => document.querySelector('svg[role=img]')?.outerHTML"
            wait_for(lambda: page.evaluate("() => document.querySelectorAll('svg[role=img], img[alt]').length") >= 3)
            before = page.evaluate(drawing)
            handle = page.locator(".noUi-handle").first
            handle.focus()
            handle.press("ArrowRight")
            wait_for(lambda: page.evaluate(drawing) != before)
            SHOTS.mkdir(parents=True, exist_ok=True)
            shot(page, "dashboard")
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
