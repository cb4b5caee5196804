"""The server of the play page: what it answers, and to whom."""

import configparser
import io
import json
import re
import socket
import struct
import sys

import numpy as np
import pytest
from play_world import ACTIONS, Served, free_port, played

from tokenworld.cli import main as cli
from tokenworld.play import server
from tokenworld.play.session import Session
from tokenworld.viz.frames import to_rgb

pytest.importorskip("minatar")


TOKEN = "secret"
ORIGIN = {"origin": "http://127.0.0.1:8642"}


@pytest.fixture
def client(dream):
    pytest.importorskip("starlette")
    pytest.importorskip("httpx")
    from starlette.testclient import TestClient

    return TestClient(server.make_app(dream, TOKEN), base_url="http://127.0.0.1:8642")


def unpacked(message: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + size]), message[4 + size :]


def asked(websocket, **message) -> tuple[dict, bytes]:
    websocket.send_json(message)
    return unpacked(websocket.receive_bytes())


def test_the_page_needs_its_token_and_this_machine(client):
    good = client.get(f"/?token={TOKEN}")
    assert good.status_code == 200 and "NONCE" not in good.text
    policy = good.headers["content-security-policy"]
    nonce = re.search(r"'nonce-([^']+)'", policy)[1]
    assert "default-src 'none'" in policy and f'<script nonce="{nonce}">' in good.text
    assert nonce not in client.get(f"/?token={TOKEN}").text
    assert good.headers["cache-control"] == "no-store" and good.headers["referrer-policy"] == "no-referrer"
    for url in ("/", "/?token=", "/?token=secreu", "/?token=%C3%A9"):
        assert client.get(url).status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"host": "evil.example:8642"}).status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"host": "localhost:8642"}).status_code == 200


def test_the_page_is_one_file_and_all_of_it_ships(client):
    """Styles and scripts are inside, under the nonce; setup.cfg packages what they are read from."""
    text = client.get(f"/?token={TOKEN}").text
    folder, setup = server.PAGE.parent, configparser.ConfigParser()
    setup.read(folder.parent.parent / "setup.cfg")
    patterns = [pattern.strip() for pattern in setup["options.package_data"]["tokenworld.play"].split(",")]
    parts = [path for path in folder.iterdir() if path.suffix in (".html", ".css", ".js")]
    assert {path.name for path in parts} == {server.PAGE.name, *server.PARTS.values()}
    for path in parts:
        assert any(path.match(pattern) for pattern in patterns), path.name
        assert path == server.PAGE or path.read_text(encoding="utf-8") in text
    assert not re.search(r"<script (?!nonce)|<link [^>]*stylesheet|style=|src=| on\w+=\"", text)


OWN = ["localhost:8642", "localhost:9000", "127.0.0.1:9000", "[::1]:9000", "localhost"]
FOREIGN = ["evil.example:8642", "evil.example",
           "localhost.evil.example:9000", "127.0.0.1.evil.example", "evil.example:localhost",
           "127.0.0.2:8642", "localhost:8642@evil.example", "", "localhost:99999999"]  # fmt: skip


@pytest.mark.parametrize("host", OWN)
def test_another_local_port_leads_here_too(client, host):
    """As `ssh -L 9000:localhost:8642` makes it: the browser knows the port 9000 only."""
    assert client.get(f"/?token={TOKEN}", headers={"host": host}).status_code == 200
    assert client.get("/?token=wrong", headers={"host": host}).status_code == 403
    own = {"host": host, "origin": f"http://{host}"}
    with client.websocket_connect(f"ws://127.0.0.1:8642/socket?token={TOKEN}", headers=own) as websocket:
        assert "hello" in unpacked(websocket.receive_bytes())[0]
    said = client.get(f"/?token={TOKEN}", headers={**own, "origin": "http://localhost:1"})
    assert said.status_code == 403 and said.text.startswith("403: the request comes") and said.text.count("\n") == 1


@pytest.mark.parametrize("host", FOREIGN)
def test_another_name_of_this_machine_is_refused(client, host):
    """A page of a name that was bound to 127.0.0.1 sends its own name, whatever the port, and is its own origin."""
    from starlette.testclient import WebSocketDenialResponse

    said = client.get(f"/?token={TOKEN}", headers={"host": host})
    assert said.status_code == 403 and "localhost" in said.text and said.text.count("\n") == 1
    with pytest.raises(WebSocketDenialResponse) as refused:
        address = f"ws://127.0.0.1:8642/socket?token={TOKEN}"
        client.websocket_connect(address, headers={"host": host, "origin": f"http://{host}"}).__enter__()
    assert refused.value.status_code == 403 and "localhost" in refused.value.text


@pytest.mark.parametrize(
    "token, headers",
    [
        ("wrong", ORIGIN),
        (TOKEN, {}),
        (TOKEN, {"origin": "null"}),
        (TOKEN, {"origin": "http://evil.example"}),
        (TOKEN, {"origin": "http://127.0.0.1:8643"}),
        (TOKEN, {**ORIGIN, "host": "evil.example:8642"}),
    ],
)
def test_the_socket_refuses_strangers(client, token, headers):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect):  # before it was accepted, which a server turns into 403
        with client.websocket_connect(f"ws://127.0.0.1:8642/socket?token={token}", headers=headers) as websocket:
            websocket.receive_bytes()


def test_two_tabs_are_two_dreams(client, dream):
    address = f"ws://127.0.0.1:8642/socket?token={TOKEN}"
    with client.websocket_connect(address, headers=ORIGIN) as a, client.websocket_connect(address, headers=ORIGIN) as b:
        for tab in (a, b):
            hello, pictures = unpacked(tab.receive_bytes())
            assert hello["actions"] == dream.actions and len(pictures) == len(dream.starts) * 10 * 10 * 3
        asked(a, op="begin", start=0, seed=4)
        asked(b, op="begin", start=1, seed=5)
        for action in ACTIONS[:5]:
            told_a, body = asked(a, op="step", action=action)
            told_b, _ = asked(b, op="step", action=2 - action, temperature=0.5)
        assert told_a["t"] == told_b["t"] == 5 and (told_a["seed"], told_b["seed"]) == (4, 5)
        expected = played(dream, ACTIONS[:5], seed=4)
        assert body[: 10 * 10 * 3] == to_rgb(expected.first.moments[-1].frame, scale=1).tobytes()
        assert told_a["dream"]["bits"] == pytest.approx(float(expected.first.moments[-1].surprise.sum()), abs=1e-3)
        for wrong in ("{", "[]", '{"op":"quit"}', '{"op":"step","action":99}', "[" * 100000, '{"op":"save","kind":"exe"}'):
            a.send_text(wrong)
            assert json.loads(a.receive_text())["error"]
        assert asked(a, op="rewind", t=2)[0]["t"] == 2
        assert asked(b, op="step", action=0)[0]["t"] == 6
        told, content = asked(a, op="save", kind="npz")
        assert told["file"].endswith(".npz") and told["bytes"] == len(content)
        assert np.load(io.BytesIO(content))["action"].tolist() == ACTIONS[:5]


def told_by(session, **message) -> dict:
    answer = server.answer_to(session, json.dumps(message))
    return json.loads(answer) if isinstance(answer, str) else unpacked(answer)[0]


def test_messages_do_what_they_say(dream):
    session = Session(dream)
    for action in (0, 2, 1):
        told = told_by(session, op="step", action=action, temperature=2.0)
        assert told["dream"]["action"] == action and told["script"]["last"] == [action, 2.0]
    assert told_by(session, op="branch", t=0, action=1)["script"]["branch"] == [0, 1, 3]
    assert told_by(session, op="unbranch")["panes"] == ["dream", "real"]
    told_by(session, op="branch", t=1, action=0)
    assert told_by(session, op="adopt")["script"]["log"] == [[0, 2.0], [0, 2.0], [1, 2.0]]
    told = told_by(session, op="begin", start=1, seed=6)
    assert (told["start"], told["seed"], told["length"]) == (1, 6, 0)


@pytest.mark.parametrize("op", [[], {}, 3, None, ["step"]])
@pytest.mark.parametrize("kind", [[], {}, 3, None])
def test_words_of_any_type_are_answered(dream, op, kind):
    session = Session(dream)
    assert "op must be one of" in told_by(session, op=op)["error"]
    assert "kind must be one of" in told_by(session, op="save", kind=kind)["error"]


LOG = [[0, 1.0], [1, 1.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"log": [[0, 1.0], [9, 1.0]]},
        {"branch": [0, 1, "2"]},
        {"branch": [0, 1, None]},
        {"branch": [0, 1, []]},
        {"branch": [0, 1, -1]},
        {"branch": [0, 1, 9]},
        {"branch": "abc"},
        {"branch": 5},
        {"branch": [[], {}, 2]},
        {"log": [[[], 1.0]]},
        {"log": [[0, {}]]},
        {"t": "1"},
        {"start": {}},
        {"seed": []},
    ],
)
def test_a_wrong_script_begins_a_new_dream(dream, wrong):
    session = played(dream, [0, 1, 1], start=2)
    script = {"start": 1, "seed": 0, "log": LOG, "branch": None, "t": 2}
    assert told_by(session, op="restore", script=script)["t"] == 2
    assert told_by(session, op="restore", script=script | wrong)["error"]
    assert (session.start, session.length, session.second) == (0, 0, None)
    assert told_by(session, op="step", action=0)["t"] == 1


def test_a_tab_too_many_waits_for_another_to_close(client, monkeypatch):
    from starlette.websockets import WebSocketDisconnect

    monkeypatch.setattr(server, "VIEWERS", 1)
    address = f"ws://127.0.0.1:8642/socket?token={TOKEN}"
    for _ in range(2):
        with client.websocket_connect(address, headers=ORIGIN) as one:
            one.receive_bytes()
            with client.websocket_connect(address, headers=ORIGIN) as other, pytest.raises(WebSocketDisconnect) as told:
                other.receive_bytes()
            assert told.value.code == 1013 and "close a tab" in told.value.reason
            assert asked(one, op="step", action=0)[0]["t"] == 1


def test_the_token_is_kept_for_its_user_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    token, file = server.remembered_token(), tmp_path / "tokenworld" / "play.token"
    assert len(token) == 43 and server.remembered_token() == token
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    assert server.remembered_token() != token, "others may have read it"
    file.write_text("short")
    assert len(server.remembered_token()) == 43
    monkeypatch.setenv("XDG_STATE_HOME", str(file))  # no folder can be made here
    assert server.remembered_token() != server.remembered_token()


def test_what_is_missing_is_one_sentence(play_run, monkeypatch, capsys):
    pytest.importorskip("uvicorn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["play", str(play_run), f"port={port}"]) == 2
        assert f"port {port} cannot be used" in capsys.readouterr().err
    assert cli.main(["play", str(play_run), "port=99999"]) == 2
    assert "from 1 to 65535" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["play", str(play_run)]) == 2
    said = capsys.readouterr().err
    assert "pip install tokenworld[play]" in said and said.count("\n") == 1


def test_a_real_server_answers_403(play_run, tmp_path):
    pytest.importorskip("uvicorn")
    client = pytest.importorskip("websockets.sync.client")
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    served = Served(play_run, port := free_port(), tmp_path)
    address, own = served.url.replace("http", "ws").replace("/?", "/socket?"), f"http://127.0.0.1:{port}"
    try:
        for url, origin in ((address[:-1], own), (address, None), (address, "http://evil.example")):
            with pytest.raises(InvalidStatus) as refused, client.connect(url, origin=origin):
                pass
            assert refused.value.response.status_code == 403
        with client.connect(address, origin=own) as websocket:
            assert "hello" in unpacked(websocket.recv(timeout=10))[0]
            websocket.send("x" * (server.LARGEST + 1))
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(timeout=10)
            assert closed.value.rcvd.code == 1009  # too big
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), 2):  # nothing listens on other addresses
            pass
    finally:
        served.kill()


# --------------------------------------------------------------------------------------------------------------- saving


def test_what_is_saved_is_what_was_seen(dream):
    from PIL import Image

    session = played(dream, ACTIONS[:7], seed=9, start=1)
    session.branch(3, (ACTIONS[3] + 1) % 3)
    arrays = np.load(io.BytesIO(session.npz()), allow_pickle=False)
    assert np.array_equal(arrays["obs"], np.stack([m.frame for m in session.first.moments]))
    for name, field in (("reward", "reward"), ("p_end", "p_end"), ("terminated", "ended"), ("temperature", "temperature")):
        assert np.allclose(arrays[name], [getattr(m, field) for m in session.first.moments[1:]]), name
        assert np.allclose(arrays[f"branch_{name}"], [getattr(m, field) for m in session.second.moments[1:]]), name
    assert (arrays["seed"], arrays["start"]) == (9, 1)
    assert arrays["action"].tolist() == ACTIONS[:7] and arrays["branch_at"] == 3
    assert arrays["surprise_bits"].shape == (7, *dream.world_model.shapes.grid)
    assert np.array_equal(arrays["branch_obs"][:4], arrays["obs"][:4])
    ends = [game.ended for game, _ in session.real[1:]]
    assert len(arrays["real_obs"]) == len(ends) + 1 and arrays["real_terminated"].tolist() == ends
    assert len(ends) == 7 or ends.index(True) == len(ends) - 1, "what is recorded of the real game stops where it ends"

    def real(t):
        return session.real[min(t, len(session.real) - 1)][0].frame.tobytes()

    gif = Image.open(io.BytesIO(session.gif()))
    assert gif.size == (3 * 200 + 2 * 4, 200) and gif.n_frames > 1
    shown = [[f.at(t).frame.tobytes() for f in session._futures()] + [real(t)] for t in range(8)]
    assert gif.n_frames == 1 + sum(a != b for a, b in zip(shown, shown[1:], strict=False))  # equal neighbours are one frame
