"""The page of `play` and the socket behind it, for this machine only.

Every tab has a session of its own; the world model is shared and only read. Steps run in worker threads, so that nobody waits
for another one's dream longer than the processor makes them.

A message of the page is one JSON object, {"op": ..., ...}. An answer is one JSON object, or bytes: u32 (little-endian) length
of a JSON object, the object, then what it announces: `panes`, each of H * W * 3 bytes RGB, or `bytes` of a file.

Who may connect: only 127.0.0.1 listens, the address holds a random token, the Host must name this machine (a foreign name that
resolves to it is refused) and the Origin be that Host. The port may be any: `ssh -L 9000:localhost:8642` makes it 9000. All
else is answered 403.
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
from tokenworld.play.future import Dream
from tokenworld.play.hints import FASTEST
from tokenworld.play.session import Session
from tokenworld.play.starts import IDLE_STEPS
from tokenworld.viz.frames import PALETTE, to_rgb

PORT = 8642
HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")
PARTS = {"STYLE": "page.css", "DRAWING": "draw.js", "SCRIPT": "page.js"}  # what is put into the page, so that it is one file
WARMEST = 1.5  # temperature that the page offers: far above it every game soon ends
VIEWERS = 16  # at once: each holds its dream's states in memory
LARGEST = 1 << 20  # bytes of a message
OWN_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")


def serve(dream: Dream, port: int = PORT) -> None:
    """Serve until Ctrl-C. Raises UserError as `check`."""
    check(port)
    uvicorn, token = _extra("uvicorn"), remembered_token()
    app = make_app(dream, token)
    print(f"open http://{HOST}:{port}/?token={token}   (Ctrl-C ends it)", flush=True)
    # on Ctrl-C open sockets are closed at once: the pages say so and wait for the next start
    settings = dict(log_level="warning", ws="websockets-sansio", ws_max_size=LARGEST, timeout_graceful_shutdown=1)
    uvicorn.run(app, host=HOST, port=port, access_log=False, **settings)


def make_app(dream: Dream, token: str):
    """The Starlette application: GET / is the page, /socket its websocket."""
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
            why = "this machine is reached as localhost or 127.0.0.1, with any port: tunnel to it, and open localhost"
        elif not secrets.compare_digest(given.encode(), token.encode()):
            why = "open the address that `tokenworld play` printed, token included"
        elif origin != f"http://{host}" and (needs_origin or origin is not None):
            why = "another page asked for this one: open the address that `tokenworld play` printed"
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
        except WebSocketDisconnect:  # while an answer was on its way
            pass
        finally:
            viewers.discard(websocket)

    return Starlette(routes=[Route("/", page), WebSocketRoute("/socket", talk)])


def page_text(nonce: str) -> str:
    """The page as one HTML text whose styles and scripts carry the nonce."""
    text = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
    for mark, name in PARTS.items():
        text = text.replace(f"/* {mark} */", PAGE.with_name(name).read_text(encoding="utf-8"))
    return text


def answer_to(session: Session, message: str) -> str | bytes:
    """What the page gets for one message; a wrong one changes nothing and is told so in one sentence."""
    try:
        asked = json.loads(message)
        if not isinstance(asked, dict) or not _named(asked.get("op"), OPS):
            raise UserError(f"op must be one of {', '.join(OPS)}: reload the page")
        return OPS[asked["op"]](session, asked)
    except UserError as error:
        return json.dumps({"error": str(error)})
    except (ValueError, RecursionError):
        return json.dumps({"error": "this message is no JSON object: reload the page"})


def _step(session: Session, asked: dict) -> bytes:
    session.step(asked.get("action"), asked.get("temperature"))
    return _seen(session, whole=False)


def _begin(session: Session, asked: dict) -> bytes:
    session.begin(asked.get("start", 0), asked.get("seed", 0))
    return _seen(session)


def _rewind(session: Session, asked: dict) -> bytes:
    session.rewind(asked.get("t"))
    return _seen(session)


def _branch(session: Session, asked: dict) -> bytes:
    session.branch(asked.get("t"), asked.get("action"))
    return _seen(session)


def _unbranch(session: Session, asked: dict) -> bytes:
    session.unbranch()
    return _seen(session)


def _adopt(session: Session, asked: dict) -> bytes:
    session.adopt()
    return _seen(session)


def _restore(session: Session, asked: dict) -> bytes:
    """After a reconnection: the page knows how the dream that it showed was made."""
    try:
        session.restore(asked.get("script"))
    except UserError:
        session.begin(0)
        raise
    return _seen(session)


def _save(session: Session, asked: dict) -> bytes:
    kinds = {"gif": session.gif, "npz": session.npz}
    if not _named(asked.get("kind"), kinds):
        raise UserError(f"kind must be one of {', '.join(kinds)}, got {asked.get('kind')!r}: choose one of these")
    content = kinds[asked["kind"]]()
    return _packed({"file": f"dream-{session.start}-{session.length}.{asked['kind']}", "bytes": len(content)}, content)


def _named(word: Any, known: dict) -> bool:
    """A page can send anything, and not all of it can be looked up."""
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


def _seen(session: Session, whole: bool = True) -> bytes:
    told, pictures = session.view(whole)
    return _packed(told, *(picture.tobytes() for picture in pictures))


def _hello(dream: Dream) -> bytes:
    """What a page must know before the first frame, and the gallery's pictures."""
    shapes = dream.world_model.shapes
    _, H, W = shapes.frame
    told: dict[str, Any] = {
        "hello": dream.name,
        "size": [H, W],
        "grid": list(shapes.grid),
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
    pictures = [to_rgb(start.steps.obs[0, -1].numpy(), scale=1).tobytes() for start in dream.starts]
    return _packed(told, *pictures)


def _hex(color: Any) -> str:
    """(3,) 0..255 -> #rrggbb."""
    return "#" + "".join(f"{int(part):02x}" for part in color)


def _packed(told: dict, *parts: bytes) -> bytes:
    header = json.dumps(told).encode()
    return struct.pack("<I", len(header)) + header + b"".join(parts)


def remembered_token() -> str:
    """A page that is open when the server ends finds the next one by it."""
    return private.token("play.token")


def check(port: int) -> None:
    """Raises UserError if the extra is not installed or the port cannot be used."""
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
    """A package of the extra `play`."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"play needs the package {name}, which is not installed: run `pip install tokenworld[play]`") from None
