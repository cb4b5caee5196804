"""Serve the page of `play` and its websocket, for this machine only.

Every tab has its own session; all sessions share one read-only world model. Steps run in worker threads, so a session waits for
another one only as long as the processor is busy.

A message of the page is one JSON object, {"op": ..., ...}. An answer is one JSON object, or bytes: u32 (little-endian) length
of a JSON object, the object, then its payload: `panes`, each of H * W * 3 bytes RGB, or `bytes` of a file.

Access control: the server listens on 127.0.0.1 only, and the address holds a random token. The Host must name this machine
(a foreign name that resolves to it is refused), and the Origin must be that Host. Any port is allowed, for a tunnel such as
`ssh -L 9000:localhost:8642`. Every other request gets a 403.
"""

from __future__ import annotations

import importlib
import json
import re
import secrets
import socket
import struct
from pathlib import Path
from typing import Any

from tokenworld import private
from tokenworld.errors import UserError
from tokenworld.play.future import DreamSettings
from tokenworld.play.hints import FASTEST
from tokenworld.play.session import Session
from tokenworld.play.starts import IDLE_STEPS
from tokenworld.viz.frames import PALETTE, size_of, to_rgb

PORT = 8642
HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
PARTS = {"STYLE": "page.css", "DRAWING": "draw.js", "SCRIPT": "page.js"}  # inserted into the page, so that it is one file
WARMEST = 1.5  # highest temperature on the page: far above it, every game soon ends
VIEWERS = 16  # maximum open pages; each holds the states of its dream in memory
LARGEST = 1 << 20  # maximum bytes of a message
OWN_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")


def serve(dream: DreamSettings, port: int = PORT) -> None:
    """Serve until Ctrl-C. Raises the UserErrors of `check`."""
    check(port)
    uvicorn, token = _extra("uvicorn"), remembered_token()
    app = make_app(dream, token)
    print(f"open http://{HOST}:{port}/?token={token}   (Ctrl-C ends it)", flush=True)
    # Ctrl-C closes open sockets at once: the pages report it and wait for the next start
    settings = dict(log_level="warning", ws="websockets-sansio", ws_max_size=LARGEST, timeout_graceful_shutdown=1)
    uvicorn.run(app, host=HOST, port=port, access_log=False, **settings)


def make_app(dream: DreamSettings, token: str):
    """Make the Starlette application: GET / is the page, /socket its websocket."""
    _extra("starlette")
    from anyio import to_thread
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocketDisconnect

    viewers: set = set()

    def refusal(connection, needs_origin: bool) -> Response | None:
        given, host = connection.query_params.get("token", ""), connection.headers.get("host", "")
        origin = connection.headers.get("origin")
        if not OWN_HOST.fullmatch(host):
            why = "the host must be localhost or 127.0.0.1, with any port: open an ssh tunnel, and then localhost"
        elif not secrets.compare_digest(given.encode(), token.encode()):
            why = "open the address that `tokenworld play` printed, token included"
        elif origin != f"http://{host}" and (needs_origin or origin is not None):
            why = "the request comes from another page: open the address that `tokenworld play` printed"
        else:
            return None
        return PlainTextResponse(f"403: {why}\n", 403)

    async def page(request) -> Response:
        refused = refusal(request, needs_origin=False)
        if refused is not None:
            return refused
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'"
        headers = {
            "Content-Security-Policy": f"{policy}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "Referrer-Policy": "no-referrer",  # the address holds the token
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        return HTMLResponse(page_text(nonce), headers=headers)

    async def talk(websocket) -> None:
        refused = refusal(websocket, needs_origin=True)
        if refused is not None:
            await websocket.send_denial_response(refused)
            return
        await websocket.accept()
        if len(viewers) >= VIEWERS:
            await websocket.close(1013, f"{VIEWERS} dreams are open already: close a tab")
            return
        viewers.add(websocket)
        try:
            session = await to_thread.run_sync(Session, dream)
            await websocket.send_bytes(await to_thread.run_sync(_hello, dream))
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                answer = await to_thread.run_sync(answer_to, session, message.get("text") or "")
                await (websocket.send_text if isinstance(answer, str) else websocket.send_bytes)(answer)
        except WebSocketDisconnect:  # during an answer
            pass
        finally:
            viewers.discard(websocket)

    return Starlette(routes=[Route("/", page), WebSocketRoute("/socket", talk)])


def page_text(nonce: str) -> str:
    """Return the page as one HTML text; its styles and scripts carry the nonce."""
    text = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
    for mark, name in PARTS.items():
        text = text.replace(f"/* {mark} */", PAGE.with_name(name).read_text(encoding="utf-8"))
    return text


def answer_to(session: Session, message: str) -> str | bytes:
    """Answer one message of the page. A wrong message changes no state and gets an error of one sentence."""
    try:
        asked = json.loads(message)
        if not isinstance(asked, dict) or not _is_known(asked.get("op"), OPS):
            raise UserError(f"op must be one of {', '.join(OPS)}: reload the page")
        return OPS[asked["op"]](session, asked)
    except UserError as error:
        return json.dumps({"error": str(error)})
    except (ValueError, RecursionError):
        return json.dumps({"error": "the message is not a JSON object: reload the page"})


def _step(session: Session, asked: dict) -> bytes:
    session.step(asked.get("action"), asked.get("temperature"))
    return _view(session, whole=False)


def _begin(session: Session, asked: dict) -> bytes:
    session.begin(asked.get("start", 0), asked.get("seed", 0))
    return _view(session)


def _rewind(session: Session, asked: dict) -> bytes:
    session.rewind(asked.get("t"))
    return _view(session)


def _branch(session: Session, asked: dict) -> bytes:
    session.branch(asked.get("t"), asked.get("action"))
    return _view(session)


def _unbranch(session: Session, asked: dict) -> bytes:
    session.unbranch()
    return _view(session)


def _adopt(session: Session, asked: dict) -> bytes:
    session.adopt()
    return _view(session)


def _restore(session: Session, asked: dict) -> bytes:
    """Make the dream of the page again after a reconnection, from the script that the page stored."""
    try:
        session.restore(asked.get("script"))
    except UserError:
        session.begin(0)
        raise
    return _view(session)


def _save(session: Session, asked: dict) -> bytes:
    kinds = {"gif": session.gif, "npz": session.npz}
    if not _is_known(asked.get("kind"), kinds):
        raise UserError(f"kind must be one of {', '.join(kinds)}, got {asked.get('kind')!r}: choose one of these")
    content = kinds[asked["kind"]]()
    return _pack({"file": f"dream-{session.start}-{session.length}.{asked['kind']}", "bytes": len(content)}, content)


def _is_known(word: Any, known: dict) -> bool:
    """Is this value of a message a known word? A page can send any value, even an unhashable one."""
    return isinstance(word, str) and word in known


OPS = {
    "step": _step,
    "begin": _begin,
    "rewind": _rewind,
    "branch": _branch,
    "unbranch": _unbranch,
    "adopt": _adopt,
    "restore": _restore,
    "save": _save,
}


def _view(session: Session, whole: bool = True) -> bytes:
    view, pictures = session.view(whole)
    return _pack(view, *(picture.tobytes() for picture in pictures))


def _hello(dream: DreamSettings) -> bytes:
    """Return the settings that a page needs before the first frame, and the pictures of the gallery."""
    H, W = size_of(dream.starts[0].steps.obs[0, -1].numpy())
    greeting: dict[str, Any] = {
        "hello": dream.name,
        "size": [H, W],
        "grid": list(dream.grid),
        "actions": dream.actions,
        "drivers": [name for name in ("policy", "planner") if getattr(dream, name) is not None],
        "idle": dream.idle,
        "idle_steps": IDLE_STEPS,
        "channels": [[name, _hex(PALETTE[i % len(PALETTE)])] for i, name in enumerate(dream.channels)],
        "fps": dream.fps,
        "fastest": FASTEST,
        "temperature": dream.temperature,
        "warmest": max(WARMEST, dream.temperature or 0),
        "starts": [{"name": s.name, "real": s.game is not None, "seeds": list(s.seeds)} for s in dream.starts],
        "panes": ["start"] * len(dream.starts),
    }
    pictures = [to_rgb(start.steps.obs[0, -1].numpy(), scale=1, limits=dream.limits).tobytes() for start in dream.starts]
    return _pack(greeting, *pictures)


def _hex(color: Any) -> str:
    """Convert a color `(3,)`, 0..255, to #rrggbb."""
    return "#" + "".join(f"{int(part):02x}" for part in color)


def _pack(answer: dict, *parts: bytes) -> bytes:
    header = json.dumps(answer).encode()
    return struct.pack("<I", len(header)) + header + b"".join(parts)


def remembered_token() -> str:
    """Return the token of earlier starts, so that an open page can reconnect to the next server."""
    return private.token("play.token")


def check(port: int) -> None:
    """Raise UserError if the extra is not installed or the port cannot be used."""
    for name in ("starlette", "uvicorn", "websockets"):
        _extra(name)
    if not 1 <= port <= 65535:
        raise UserError(f"port must be a number from 1 to 65535, got {port}: choose for example port={PORT}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror}): choose another, e.g. port={port % 65535 + 1}"
            ) from None


def _extra(name: str):
    """Import a package of the extra `play`. Raises UserError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"play needs the package {name}, which is not installed: run `pip install tokenworld[play]`") from None
