"""The play page in a browser: what a person can do there, and that all of it fits one window and has a name."""

import time

import numpy as np
import pytest
from browser import CHROMIUM, Browser, wait_for
from play_world import Served, free_port

pytest.importorskip("minatar")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page with")
def test_a_person_plays_in_a_browser(play_run, tmp_path):
    pytest.importorskip("uvicorn")
    pytest.importorskip("websockets")
    served = Served(play_run, port := free_port(), tmp_path)
    (tmp_path / "profile").mkdir()
    browser = Browser(tmp_path / "profile")
    try:
        step = "+document.body.dataset.t"
        browser("Page.navigate", url=served.url)
        browser.until("document.body?.dataset.t === '0'", 30)
        before = browser.eval("document.querySelector('.dream canvas').toDataURL()")
        for t in range(8):  # paused: an action key is one step
            browser.key("ArrowLeft", 37)
            browser.until(f"{step} === {t + 1}")
        assert browser.eval("script.log.every((entry) => entry[0] === world.actions.indexOf('LEFT'))")
        assert browser.eval("document.querySelector('.dream canvas').toDataURL()") != before
        browser.eval("$('fps').value = 30")
        browser.type("p")
        browser.until(f"{step} > 9")
        frames, began = browser.eval("+document.body.dataset.frames"), time.monotonic()
        browser.key("ArrowRight", 39, hold=1.0)
        rate = (browser.eval("+document.body.dataset.frames") - frames) / (time.monotonic() - began)
        for _ in range(15):  # while playing
            browser.key("ArrowRight", 39)
        latency = browser.until("+document.body.dataset.latency")
        browser.type("p")
        browser.until("!playing && !waiting")
        assert browser.eval("script.log.filter((e) => e[0] === world.actions.indexOf('RIGHT')).length") >= 12
        time.sleep(0.3)
        length = browser.eval(step)
        time.sleep(0.3)
        assert browser.eval(step) == length, "paused"
        browser.eval("document.getElementById('t').value = 5; document.getElementById('t').oninput()")
        browser.until(f"{step} === 5")
        browser.type("b")
        browser.until("armed")
        browser.key("ArrowRight", 39)
        browser.until("seen.branch && !waiting && document.querySelectorAll('figure').length === 3")
        assert browser.eval("seen.branch.at === 5 && seen.length") == length
        browser.type("m")
        assert browser.eval("driver") == "policy"
        browser.type("m")
        assert browser.eval("driver") == "planner" and "Planner" in browser.eval("$('driver').textContent")
        browser.eval(f"rewind({length})")
        browser.until(f"{step} === {length}")
        browser.type(".")  # the planner's step, and what one is asked who leaves the future there
        browser.until(f"{step} === {length + 1} && !waiting")
        assert browser.eval("script.log.at(-1)[0]") == "planner"
        browser.eval(f"rewind({length})")
        browser.until(f"{step} === {length}")
        browser.type("b")
        assert "instead of the planner's" in browser.eval("document.body.innerText")
        browser.key("Escape", 27)
        browser.type("m")
        assert browser.eval("driver === null")
        browser.type("o")
        assert browser.eval("!document.querySelectorAll('.dream canvas')[1].hidden")
        browser.eval(f"rewind({length})")
        browser.until(f"{step} === {length}")
        for width, height in ((400, 1500), (900, 1000), (1600, 1000)):
            browser.screenshot(tmp_path / f"play-{width}.png", width, height)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser("Emulation.setEmulatedMedia", features=dark)
        browser.screenshot(tmp_path / "play-dark.png", 1600, 1000)
        for letter, kind in (("d", "npz"), ("s", "gif")):
            browser.type(letter)
            file = wait_for(lambda k=kind: next(iter((tmp_path / "profile").glob(f"dream-*.{k}")), None), 15, kind)
            wait_for(lambda f=file: f.stat().st_size, 5)
        arrays = np.load(next((tmp_path / "profile").glob("*.npz")), allow_pickle=False)
        assert len(arrays["action"]) == length + 1 and arrays["by_planner"].tolist() == [False] * length + [True]
        assert arrays["action"][:8].tolist() == [1] * 8 and arrays["branch_at"] == 5
        foreign = {
            e["params"]["request"]["url"].split(":")[0] for e in browser.events if e["method"] == "Network.requestWillBeSent"
        }
        assert foreign <= {"http", "data", "blob"} and not browser.problems()
        shown = browser.eval("document.querySelector('.branch canvas').toDataURL()")
        served.kill()
        browser.until("document.body.dataset.link === 'off'")
        assert "disconnected" in browser.eval("document.getElementById('link').textContent")
        served = Served(play_run, port, tmp_path)
        browser.until(f"document.body.dataset.link === 'on' && {step} === {length} && seen.branch && !waiting", 20)
        assert browser.eval("document.querySelector('.branch canvas').toDataURL()") == shown, "the dream goes on where it was"
        print(f"{rate:.1f} frames/s of 30 wanted, {latency:.0f} ms from key to frame")
        assert latency < 250 and rate > 15
    finally:
        browser.close()
        served.kill()
