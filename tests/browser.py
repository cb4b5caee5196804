"""A headless Chromium for tests, driven over its DevTools protocol: nothing but the package `websockets` is needed."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """A headless Chromium, driven over its DevTools protocol."""

    def __init__(self, profile: Path):
        from websockets.sync.client import connect  # the file is also imported where it is not installed

        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]
        command = [CHROMIUM, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        port = wait_for(lambda: (profile / "DevToolsActivePort").read_text().splitlines(), 30)
        self.open = contextlib.ExitStack()
        self.socket = self.open.enter_context(connect(f"ws://127.0.0.1:{port[0]}{port[1]}", max_size=None))
        self.number, self.events, self.session = 0, [], None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        self("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(profile))

    def __call__(self, method: str, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.socket.recv(timeout=30))
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def eval(self, expression: str):
        result = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 15):
        return wait_for(lambda: self.eval(expression), seconds, expression)

    def key(self, key: str, code: int, hold: float = 0.0):
        text = {"text": key} if len(key) == 1 else {}
        self("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
        time.sleep(hold)
        self("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, letter: str):
        self.key(letter, ord(letter.upper()))

    def tap(self, selector: str):
        """A finger on the middle of an element."""
        x, y = self._middle(selector)
        self("Emulation.setTouchEmulationEnabled", enabled=True)
        self("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self("Emulation.setTouchEmulationEnabled", enabled=False)

    def click(self, selector: str):
        """The mouse on the middle of an element."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _middle(self, selector: str) -> list[float]:
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        return self.eval(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")

    def controls(self) -> list[tuple[str, str, str]]:
        """(role, name, keys) of each control, as a screen reader gets them."""
        roles = {"button", "slider", "link", "checkbox", "combobox", "textbox", "radio", "spinbutton"}
        self("Accessibility.enable")
        found = []
        for node in self("Accessibility.getFullAXTree")["nodes"]:
            role = node.get("role", {}).get("value")
            if not node.get("ignored") and role in roles:
                keys = [p["value"]["value"] for p in node.get("properties", []) if p["name"] == "keyshortcuts"]
                found.append((role, node.get("name", {}).get("value", ""), "".join(keys)))
        return found

    def problems(self) -> list:
        """What the console complained of."""
        bad = [e for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        bad += [e for e in self.events if e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] == "error"]
        return bad + [e for e in self.events if e["method"] == "Log.entryAdded" and e["params"]["entry"]["level"] == "error"]

    def resize(self, width: int, height: int):
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        time.sleep(0.3)

    def screenshot(self, path: Path, width: int, height: int):
        self.resize(width, height)
        assert self.eval("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
            f"the page is wider than {width} pixels"
        )
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def close(self):
        self.open.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_for(look, seconds: float, what: object = ""):
    """The first true value of look()."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            value = look()
        except OSError:
            value = None
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s in vain: {what}")
