"""JupyterLab in a real browser, on a busy machine: the live figure is drawn, wherever and whenever its notebook is looked at.

What is compared are the points that the page draws, not what a status line says. Needs Chromium (found on the PATH, or named by
CHROMIUM) and the extra `browser`. Screenshots are kept in `build/screenshots`. What is opened are small notebooks made here, so
that a change to the course cannot hide a broken widget.
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
LIVE = """() => {
    const alive = e => e.getClientRects().length > 0
    const drawn = [...document.querySelectorAll('svg[role=img][aria-label*="rounds played"]')].filter(alive)
    const loaded = e => alive(e) && e.complete && e.naturalWidth > 0
    const still = [...document.querySelectorAll('img[alt*="rounds played"]')].filter(loaded)
    const decode = url => new DOMParser().parseFromString(new TextDecoder().decode(
        Uint8Array.from(atob(url.split('base64,')[1]), c => c.charCodeAt(0))), 'image/svg+xml').documentElement
    return [...drawn, ...still.map(e => decode(e.src))].map(svg => {
        const paths = [...svg.querySelectorAll('path[stroke="#009E73"]')].map(p => p.getAttribute('d'))
        return {points: paths[0] ? paths[0].split(/[ML]/).length - 1 : 0, path: paths[0] || '',
                nan: svg.outerHTML.includes('NaN'), rounds: parseInt(svg.getAttribute('aria-label'))} }) }"""
"""For each live figure that is visible: the points of its first line as drawn, and the rounds its description counts."""


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
        end(server)
        log.close()
    said = (folder / "server.log").read_text()
    assert not any(ours in said for ours in ("adadfq_lab/", "ipywidgets", "plotly", "ipykernel/")), said


def end(server):
    """Asks a server to end, and ends it if it does not within half a minute."""
    server.terminate()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(30)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def notebook(lab_server, name, cells):
    """Writes a notebook of these cells; returns the address at which JupyterLab opens it, in a workspace of its own."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(made, lab_server[2] / name)
    return address(lab_server, name)


def address(lab_server, name):
    url, token, _ = lab_server
    return f"{url}/lab/workspaces/{secrets.token_hex(4)}/tree/{name}?token={token}"


def ready(page):
    """Waits until the notebook is shown and its kernel answers."""
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady === true", timeout=180_000)


@contextmanager
def opened(lab_server, name, cells, *, dark=False):
    """A page of JupyterLab on a new notebook of these cells, its kernel ready; None for one that exists and is not run."""
    from playwright.sync_api import sync_playwright

    at = address(lab_server, name) if cells is None else notebook(lab_server, name, cells)
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_context(viewport={"width": 1280, "height": 2000}).new_page()
        page.goto(at, timeout=120_000)
        ready(page)
        if dark:
            page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
        if cells is not None:
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


@pytest.fixture(scope="module", autouse=True)
def busy_machine():
    """While these tests run, at least as many processes compute as there are cores."""
    idle = round((os.cpu_count() or 1) - os.getloadavg()[0])
    loads = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(idle)]
    yield
    for one in loads:
        one.kill()
        one.wait()


def live(page):
    """What the live figures of a page draw; none of them has a coordinate that is not a number."""
    found = page.evaluate(LIVE)
    assert not any(one["nan"] for one in found)
    return found


def points(page):
    """Points of the last live figure's first line, 0 if nothing is drawn."""
    found = live(page)
    return found[-1]["points"] if found else 0


def grows(page, seconds=120):
    """Waits until more is drawn than now."""
    before = points(page)
    return wait_for(lambda: points(page) > before and points(page), seconds)


def run_cell(page, index):
    page.evaluate(
        "i => { const n = jupyterapp.shell.currentWidget.content; n.deselectAll(); n.activeCellIndex = i;"
        " jupyterapp.commands.execute('notebook:run-cell') }",
        index,
    )


def seen(page):
    """The words that are visible in the notebook."""
    return page.inner_text(".jp-Notebook")


@needs_chromium
def test_the_live_figure_is_followed_everywhere(lab_server):
    """Run All, the live cell run again, the page reloaded, a second tab, a display in another cell, Stop, a kernel restart."""
    with opened(lab_server, "live.ipynb", [CELLS[0], "run.start()", "run"]) as page:
        wait_for(lambda: len(live(page)) == 2 and min(one["points"] for one in live(page)) > 3, 240)
        shot(page, "displayed_twice")
        assert "running" in seen(page)
        again = "run = lab.LiveRun(game, rounds=5000).start()\nrun"
        for _ in range(2):
            page.evaluate(
                "source => { const n = jupyterapp.shell.currentWidget.content; n.deselectAll(); n.activeCellIndex = 1;"
                " n.activeCell.model.sharedModel.setSource(source) }",
                again,
            )
            run_cell(page, 1)
            wait_for(lambda: "another run was started" in seen(page))
            wait_for(lambda: 0 < live(page)[0]["points"] < 60 and "running" in seen(page))
            before = live(page)[0]["points"]
            wait_for(lambda before=before: live(page)[0]["points"] > before + 2)
        shot(page, "run_again")

        page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")  # waits for the file
        page.reload()
        ready(page)
        count = wait_for(lambda: max((one["points"] for one in live(page)), default=0))
        wait_for(lambda: max(one["points"] for one in live(page)) > count + 2)
        shot(page, "reloaded")

        other = page.context.new_page()
        other.goto(address(lab_server, "live.ipynb"), timeout=120_000)
        ready(other)
        count = wait_for(lambda: max((one["points"] for one in live(other)), default=0))
        wait_for(lambda: max(one["points"] for one in live(other)) > count + 2)
        shot(other, "second_tab")

        click(other, "Stop")
        for one in (other, page):
            wait_for(lambda one=one: "stopped:" in seen(one) and "running:" not in seen(one))
            assert max(figure["points"] for figure in live(one)) > count
        shot(page, "stopped_elsewhere")

        run_cell(page, 1)
        wait_for(lambda: "running:" in seen(page) and points(page))
        page.evaluate("() => { jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart() }")
        wait_for(lambda: "kernel of this run is gone" in seen(page), 60)
        assert "running:" not in seen(page)
        assert max(figure["points"] for figure in live(page)) > 0, "what was drawn stays"
        shot(page, "restarted")


@needs_chromium
def test_a_game_is_steered_and_two_notebooks_play_at_once(lab_server):
    """Points arrive in both; the slider moves the histogram and the band; pause and stop end the growth, resume does not."""
    with opened(lab_server, "steer.ipynb", CELLS) as page:
        wait_for(lambda: points(page) > 4, 240)
        other = page.context.new_page()
        other.goto(notebook(lab_server, "second.ipynb", [CELLS[0], "run.start()"]), timeout=120_000)
        ready(other)
        other.evaluate("() => { jupyterapp.commands.execute('notebook:run-all-cells') }")
        wait_for(lambda: points(other) > 4, 240)
        grows(page)
        shot(page, "playing")
        text = "() => [...document.querySelectorAll('.jp-OutputArea-output svg[role=img]')][0].outerHTML"
        before = page.evaluate(text)
        page.bring_to_front()
        handle = page.locator(".noUi-handle").first
        handle.focus()
        for _ in range(6):
            handle.press("ArrowRight")
        wait_for(lambda: page.evaluate(text) != before)
        words = "() => document.querySelector('.jp-Notebook').textContent.replace(/[ \u200b]/g, '')"
        wait_for(lambda: "λl0.4" in page.evaluate(words))
        shot(page, "bounds_moved")
        click(page, "Pause")
        wait_for(lambda: "paused" in seen(page))
        count = points(page)
        time.sleep(2)
        assert points(page) == count
        click(page, "Resume")
        grows(page)
        click(page, "Stop")
        wait_for(lambda: "stopped" in seen(page))
        count = points(page)
        grows(other)
        assert points(page) == count
        shot(page, "stopped")
        click(other, "Stop")
        wait_for(lambda: "stopped" in seen(other))
        wide = "e => e.scrollWidth > e.clientWidth + 1"
        narrow = f"() => [...document.querySelectorAll('.jp-OutputArea-output')].filter({wide}).length"
        page.set_viewport_size({"width": 900, "height": 1400})
        wait_for(lambda: page.evaluate(narrow) == 0)  # no output has a horizontal scrollbar at 900 pixels
        shot(page, "narrow")


@needs_chromium
def test_an_executed_notebook_keeps_its_pictures(lab_server):
    """Executed by nbconvert, every figure is in the HTML page, in the Markdown, and in JupyterLab without a kernel."""
    folder = lab_server[2]
    cells = [
        CELLS[0].replace("5000", "5"),
        "lab.bounds_explorer()",
        "run.start()",
        "run.then(lambda h: f'<p>{len(h)} in all</p>')",
    ]
    notebook(lab_server, "source.ipynb", cells)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ADADFQ_LAB_WAIT": "1"}
    environment.pop("ADADFQ_LAB_FAST", None)
    for options in (["--execute", "--to", "notebook", "--output", "done.ipynb", "source.ipynb"],
                    ["--to", "html", "done.ipynb"], ["--to", "markdown", "done.ipynb"]):  # fmt: skip
        command = [sys.executable, "-m", "jupyter", "nbconvert", *options]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, timeout=240)
    assert "rounds played" in (folder / "done.md").read_text() and "5 in all" in (folder / "done.md").read_text()
    saved = nbformat.read(folder / "done.ipynb", 4)
    state = saved.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    assert not any(model.get("buffers") for model in state.values())
    with opened(lab_server, "done.ipynb", None) as page:
        wait_for(lambda: live(page))
        assert live(page)[-1]["rounds"] == live(page)[-1]["points"] == 5
        assert "finished" in seen(page)
        shot(page, "opened_again")
        static = page.context.new_page()
        static.goto((folder / "done.html").as_uri())
        wait_for(lambda: live(static))
        assert live(static)[-1]["points"] == 5
        shot(static, "static")


@needs_chromium
def test_the_dark_theme_is_readable(lab_server):
    """In JupyterLab's dark theme, text of the recorded-data widgets and of the live figure contrasts with the page."""
    cells = [CELLS[0].replace("5000", "3"), "lab.bounds_explorer()", "lab.logit_playground()", "run.start()"]
    with opened(lab_server, "dark.ipynb", cells, dark=True) as page:
        wait_for(lambda: points(page) >= 3, 240)
        shot(page, "dark")
        luminance = """() => {
            const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255;
                return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
                return 0.2126 * r + 0.7152 * g + 0.0722 * b };
            const page = light(getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor);
            const texts = [...document.querySelectorAll('svg[role=img] text')];
            const ratio = l => (Math.max(l, page) + 0.05) / (Math.min(l, page) + 0.05);
            return texts.map(t => ratio(light(getComputedStyle(t).fill)))
        }"""
        ratios = page.evaluate(luminance)
        assert len(ratios) > 20
        assert min(ratios) > 3, "some text is hard to read on the dark page"


@needs_chromium
def test_the_dashboard_is_a_page_of_its_own():
    """The bounds explorer, a recorded run and the images of G; dragging a bound redraws the histogram. A token is needed."""
    pytest.importorskip("voila", reason="needs the extra `dashboard`")
    from playwright.sync_api import sync_playwright

    url = f"http://127.0.0.1:{(port := free_port())}/"
    command = [sys.executable, "-m", "adadfq_lab.course.dashboard", "--no-browser", f"--port={port}", "--token=tested"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1200, "height": 1900})
            wait_for(lambda: server.poll() is not None or listens(port))
            page.goto(url, timeout=120_000)
            assert "/login" in page.url
            page.goto(f"{url}?token=tested", timeout=120_000)
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
        end(server)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
