"""The play page in a browser: it waits for the first key, fits one window, names its controls and says one thing at a time."""

import time

import numpy as np
import pytest
from browser import CHROMIUM, Browser, wait_for
from play_world import Served, free_port, shift_end

pytest.importorskip("minatar")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page with")

STEP = "+document.body.dataset.t"
STATE = "document.body.dataset.state"
KEYS = [("ArrowLeft", 37), ("ArrowRight", 39), ("1", 49)]
SIZES = [(1366, 768), (1600, 900), (375, 667)]


class Page(Browser):
    """A browser at the page of a served run."""

    def __init__(self, run, folder):
        self.run, self.folder, self.port = run, folder, free_port()
        self.served = Served(run, self.port, folder)
        (folder / "profile").mkdir()
        super().__init__(folder / "profile")
        self.load()

    def load(self):
        """The page as a new tab sees it."""
        if self.eval("location.protocol") == "http:":
            self.eval("script = null; sessionStorage.clear()")  # nothing to remember
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=self.served.url)
        self.until(f"document.body?.dataset.state === 'waiting' && {STEP} === 0 && !waiting", 30)
        self.resize(1366, 768)

    def status(self) -> str:
        return self.eval("$('status').textContent")

    def leave(self):
        self.close()
        self.served.kill()


@pytest.fixture(scope="module")
def opened_page(mortal_run, tmp_path_factory):
    page = Page(mortal_run, tmp_path_factory.mktemp("page"))
    yield page
    page.leave()


@pytest.fixture
def page(opened_page):
    opened_page.load()
    return opened_page


def hidden_parts(page) -> list[str]:
    """Of what a player needs: what is not wholly inside the window, or lies below something else."""
    return page.eval("""[...document.querySelectorAll("#panes canvas:first-child, #pad button, #play, #status")].filter((e) => {
      const box = e.getBoundingClientRect(), top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
      return scrollY || box.width < 40 || box.height < 12 || box.x < 0 || box.y < 0 || box.right > innerWidth ||
        box.bottom > innerHeight || !(e === top || e.contains(top) || e.parentNode.contains(top));
    }).map((e) => e.id || e.textContent || e.getAttribute("aria-label"))""")


@pytest.mark.parametrize("width, height", [*SIZES, (667, 375), (900, 1200)])
def test_one_window_holds_all_that_is_played_with(page, width, height):
    """Also with the third pane of a branch; nothing is wider than the window."""
    page.resize(width, height)
    assert hidden_parts(page) == []
    page.type(".")
    page.until(f"{STEP} === 1 && !waiting")
    page.type("b")
    page.key("ArrowRight", 39)
    page.until("seen.branch && document.querySelectorAll('figure').length === 3 && !waiting")
    assert hidden_parts(page) == []
    assert page.eval("document.documentElement.scrollWidth <= innerWidth")
    small = "[...document.querySelectorAll('#stage button')].filter((e) => !e.hidden && e.getBoundingClientRect().height < 44)"
    assert page.eval(f"{small}.length") == 0, "a finger needs 44 pixels"


def test_the_game_waits_for_the_first_action_key(page):
    time.sleep(0.7)
    assert page.eval(STEP) == 0 and "first action key" in page.status()
    assert page.eval("world.fps === 4 && +$('fps').value === 4"), "MinAtar is slow enough for people"
    began = time.monotonic()
    page.key("ArrowLeft", 37)
    page.until(f"{STEP} >= 5")
    assert 0.7 < time.monotonic() - began < 4 and page.eval(STATE) == "playing"
    idle = page.eval("world.idle")
    assert page.eval("script.log.map((entry) => entry[0])")[:5] == [1, *[idle] * 4]
    page.type("p")
    page.until(f"{STATE} === 'paused' && !waiting")
    length = page.eval(STEP)
    page.key("ArrowRight", 39)
    page.until(f"{STEP} === {length + 1}")
    time.sleep(0.5)
    assert page.eval(STEP) == length + 1, "paused, a key is one step"


def test_every_start_state_lasts_ten_steps_after_one_key(page):
    """At thirty steps per second, so that it takes moments."""
    starts = page.eval("world.starts.length")
    assert 3 < starts <= 12 and page.eval("world.starts.every((start) => start.seeds.length > 0 && start.seeds.length < 8)")
    for i in range(3 * starts):
        page.eval(f"begin({i % starts})")
        page.until(f"!waiting && {STEP} === 0 && seen.start === {i % starts}")
        page.eval("$('fps').value = 30")
        page.key(*KEYS[i // starts])
        page.until(f"{STEP} >= 10 || {STATE} === 'ended'")
        assert page.eval("seen.t > 10 || !seen.dream.ended"), (i, page.eval(STEP))


def test_a_model_whose_games_end_at_once_can_be_played(mortal_run, tmp_path):
    import shutil

    page = Page(shift_end(shutil.copytree(mortal_run, tmp_path / "run"), 30), tmp_path)
    try:
        assert page.eval("world.starts.length") > 3 and "end within 10 steps" in page.status()
        page.key("ArrowLeft", 37)
        page.until(f"{STATE} === 'ended' && !waiting")
        assert page.status() == "The dream ended at step 1. Begin again, or rewind."
        assert page.eval("$('play').disabled && $('single').disabled && document.querySelector('#pad button').disabled")
        page.key("ArrowLeft", 37)
        page.type("p")
        assert page.eval(STATE) == "ended"
        page.type("r")
        page.until(f"{STATE} === 'waiting'")
    finally:
        page.leave()


def test_every_control_has_a_name_and_its_key(page):
    page.type(".")
    page.until(f"{STEP} === 1 && !waiting")
    page.type("b")
    page.key("ArrowRight", 39)
    page.until("seen.branch && !waiting")
    controls = page.controls()
    assert [c for c in controls if not c[1].strip()] == []
    keys = {name: key for _, name, key in controls}
    expected = {
        "Help: keys and words": "?", "noop": "1", "left": "ArrowLeft 2", "right": "ArrowRight 3", "Play": "P", "Back": ",",
        "One step": ".", "Begin again": "R", "Branch": "B", "Keep branch": "K", "Drop branch": "X", "Step": ", .",
        "You": "M", "Policy": "M", "Planner": "M", "Speed": "- Plus", "Temperature": "[ ]", "Show surprise": "O",
        "Save gif": "S", "Save data": "D",
    }  # fmt: skip
    starts = page.eval("world.starts.map((start) => start.name)")
    assert keys == expected | dict.fromkeys(starts, "") and len(controls) == len(expected) + len(starts)
    page.type("?")
    page.until("$('help').open")
    assert ("button", "Close", "Escape") in page.controls()


def test_live_regions_say_one_thing_per_state(page):
    assert page.eval("document.querySelectorAll('[aria-live], [role=status], [role=alert], [role=log], output').length") == 1
    page.eval("""var heard = []; new MutationObserver(() => heard.push($("status").textContent))
      .observe($("status"), { childList: true, characterData: true, subtree: true })""")
    page.eval("$('fps').value = 10")
    page.key("ArrowLeft", 37)
    page.until(f"{STEP} >= 5")
    page.eval("pause(); refresh()")
    page.until("!waiting")
    page.type("d")
    page.until("$('status').textContent.startsWith('Saved')")
    page.type(",")
    page.until(f"{STATE} === 'paused' && !waiting")
    heard = page.eval("heard")
    paused = "Paused. Play continues; an action key takes one step."
    assert heard[:2] == ["You play. P pauses.", paused] and heard[3:] == [paused]
    assert heard[2].startswith("Saved dream-")


def test_without_the_server_nothing_can_be_pressed(page):
    page.type(".")
    page.until(f"{STEP} === 1 && !waiting")
    frame = page.eval("document.querySelector('.dream canvas').toDataURL()")
    page.served.kill()
    page.until("document.body.dataset.link === 'off'")
    for letter in "prb.":
        page.type(letter)
    page.key("ArrowLeft", 37)
    page.type("m")
    assert page.eval(STATE) == "offline" and "does not answer" in page.status()
    can = "[...document.querySelectorAll('main button, main input')].filter((e) => !e.disabled).map((e) => e.id)"
    assert page.eval(can) == ["help-open"]
    page.served = Served(page.run, page.port, page.folder)
    page.until(f"{STATE} === 'paused' && {STEP} === 1 && !waiting", 30)
    assert page.eval("document.querySelector('.dream canvas').toDataURL()") == frame
    assert page.eval("driver === null && !$('play').disabled")


def test_a_reload_keeps_the_game(page):
    page.type("]")
    for t in (1, 2, 3):
        page.type(".")
        page.until(f"{STEP} === {t} && !waiting")
    before = page.eval("[JSON.stringify(script), document.querySelector('.dream canvas').toDataURL(), $('temperature').value]")
    page("Page.reload")
    page.until("document.body?.dataset.state === 'paused' && !waiting && seen.t === 3", 20)
    after = page.eval("[JSON.stringify(script), document.querySelector('.dream canvas').toDataURL(), $('temperature').value]")
    assert after == before and before[2] == "1.05"
    page.eval("world.identity = 'another model'")
    page("Page.reload")
    page.until("document.body?.dataset.state === 'waiting' && !waiting && seen.t === 0", 20)


def test_a_finger_and_a_mouse_play_too(page):
    page.resize(375, 667)
    page.tap("#pad button:nth-child(2)")
    page.until(f"{STEP} >= 2")
    page.click("#play")
    page.until(f"{STATE} === 'paused' && !waiting")
    assert page.eval("script.log[0][0]") == 1
    length = page.eval(STEP)
    page.click("#pad button:nth-child(3)")
    page.until(f"{STEP} === {length + 1}")
    assert page.eval("script.log.at(-1)[0]") == 2 and page.eval("held.size") == 0


def test_help_explains_and_takes_no_keys(page):
    names = page.eval("[...document.querySelectorAll('#about .legend li')].map((item) => item.textContent)")
    assert names == ["paddle", "ball", "trail", "brick"]
    colors = "[...document.querySelectorAll('#about .legend i')].map((item) => getComputedStyle(item).backgroundColor)"
    assert page.eval(colors)[:2] == ["rgb(0, 114, 178)", "rgb(240, 228, 66)"]
    page.key("ArrowLeft", 37)
    page.until(f"{STEP} >= 1")
    page.type("?")
    page.until("$('help').open")
    length = page.until(f"!waiting && {STEP}")
    page.key("ArrowLeft", 37)
    page.type("p")
    time.sleep(0.5)
    assert page.eval(STEP) == length, "the game is paused while one reads"
    words = page.eval("$('help').innerText")
    assert all(word in words for word in ("Return", "Surprise", "one bit is the toss of a coin", "Seed"))
    page.key("Escape", 27)
    page.until("!$('help').open")
    assert page.eval(STATE) == "paused"


def test_a_planner_that_searches_is_seen(page):
    page.eval("drive('planner')")
    assert page.status() == "Play lets the planner begin. An action key takes over."
    page.eval("var turns = 0; new MutationObserver(() => turns++).observe($('busy'), { attributeFilter: ['hidden'] })")
    page.type("p")
    page.until("!$('busy').hidden && $('busy').textContent.includes('planner is searching')")
    page.until(f"{STEP} >= 4")
    assert page.eval("turns === 1 && !$('busy').hidden"), "it does not flicker between the steps"
    page.type("p")
    page.until("!waiting && $('busy').hidden")


@pytest.mark.parametrize("drivers, labels", [("planner", ["You", "Planner"]), ("policy", ["You", "Policy"]), ("", ["You"])])
def test_who_plays_is_who_is_there(page, drivers, labels):
    page.eval(f"world.drivers = {drivers.split()}; makeDrivers(); refresh()")
    assert page.eval("[...$('drivers').children].map((button) => button.textContent)") == labels
    turns = []
    for _ in labels:
        page.type("m")
        turns.append(page.eval("NAMES[driver]"))
    assert turns == [*labels[1:], "You"]
    assert page.eval("$('drivers').querySelector('[aria-pressed=true]').textContent") == "You"


def test_temperatures_are_sensible(page):
    assert page.eval("+$('temperature').max") == 1.5


def test_a_person_plays_in_a_browser(play_run, tmp_path):
    browser, step = Page(play_run, tmp_path), STEP
    try:
        browser.eval("rewind(0)")  # paused before the first step
        browser.until(f"{STATE} === 'paused' && !waiting")
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
        assert browser.eval("driver") == "planner" and "planner" in browser.status()
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
        browser.served.kill()
        browser.until("document.body.dataset.link === 'off'")
        assert "disconnected" in browser.eval("document.getElementById('link').textContent")
        browser.served = Served(play_run, browser.port, tmp_path)
        browser.until(f"document.body.dataset.link === 'on' && {step} === {length} && seen.branch && !waiting", 20)
        assert browser.eval("document.querySelector('.branch canvas').toDataURL()") == shown, "the dream goes on where it was"
        print(f"{rate:.1f} frames/s of 30 wanted, {latency:.0f} ms from key to frame")
        assert latency < 250 and rate > 15
    finally:
        browser.leave()
