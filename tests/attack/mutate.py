"""Ways to damage a file, each a function of bytes and a random generator: as bytes, as a tree of values, as its format has it.

A mutation returns the new bytes and words for what was done. Those of a format keep its own checksums right, so that a reader
gets to the content.
"""

from __future__ import annotations

import functools
import io
import json
import math
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml

MAGIC, HEADER = b"TWEP", struct.Struct("<4sIQI")
NEST = "@deep@"  # stands for a nesting that no serializer writes
BOMB = 400 * 2**20  # bytes that a few hundred KB expand to
Mutation = tuple[bytes, str]

# ---------------------------------------------------------------------------------------------------------------------
# Bytes


def raw(content: bytes, rng: random.Random) -> Mutation:
    """Damage to bytes, of whatever format."""
    n = len(content)
    a, b = sorted((rng.randrange(n + 1), rng.randrange(n + 1)))
    b = min(b, a + 4096)
    kind = rng.choice(("flip", "flip", "flip", "cut", "empty", "swap", "repeat", "zero", "append", "huge", "insert", "drop"))
    if kind == "flip":
        found = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8))):
            found[rng.randrange(n)] ^= 1 << rng.randrange(8)
        return bytes(found), "bits flipped"
    if kind == "huge":
        value = rng.choice((2**32 - 1, 2**63 - 1, 2**64 - 1, 2**31, 0x7FFFFFFFFF)) & (2**64 - 1)
        a = rng.choice((a, rng.randrange(min(64, n))))
        return content[:a] + struct.pack("<Q", value) + content[a + 8 :], f"the number {value} written at byte {a}"
    if kind == "swap":
        c = rng.randrange(b, n + 1)
        return content[:a] + content[b:c] + content[a:b] + content[c:], f"bytes {a}..{b} and {b}..{c} swapped"
    made = {
        "cut": (content[: rng.choice((a, n - rng.randrange(min(n, 32))))], "cut"),
        "empty": (b"", "emptied"),
        "repeat": (content[:b] + content[a:], f"bytes {a}..{b} repeated"),
        "zero": (content[:a] + bytes(b - a) + content[b:], f"bytes {a}..{b} zeroed"),
        "append": (content + rng.randbytes(rng.choice((1, 100, 10_000))), "garbage appended"),
        "insert": (content[:a] + rng.randbytes(rng.choice((1, 8, 100))) + content[a:], f"garbage inserted at {a}"),
        "drop": (content[:a] + content[b:], f"bytes {a}..{b} dropped"),
    }
    return made[kind]


# ---------------------------------------------------------------------------------------------------------------------
# Trees of values


def tree(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy of nested dicts, lists and leaves in which one node is changed or absent; what was done, with the old value."""
    path: list = []
    node = value
    while isinstance(node, (dict, list, tuple)) and len(node) and (not path or rng.random() > 0.15):
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        path.append(key)
        node = node[key]
    where = ".".join(map(str, path))
    if rng.random() < 0.15 and path:
        return _with(value, path, None, drop=True), f"{where} dropped"
    new = changed(node, rng)
    return _with(value, path, new), f"{where}: {_short(node)} -> {_short(new)}"


def _with(value: Any, path: list, new: Any, drop: bool = False) -> Any:
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        same = dict(value)
        if drop and not rest:
            del same[key]
        else:
            same[key] = _with(value[key], rest, new, drop)
        return same
    items = list(value)
    if drop and not rest:
        del items[key]
    else:
        items[key] = _with(items[key], rest, new, drop)
    return type(value)(items) if type(value) in (list, tuple) else items


def changed(node: Any, rng: random.Random) -> Any:
    """Another type, sign, size or content."""
    if torch.is_tensor(node) and rng.random() < 0.8:
        return _changed_tensor(node, rng)
    options: list[Callable[[], Any]] = [
        lambda: None, lambda: True, lambda: 0, lambda: -1, lambda: 10**30, lambda: 1e308, lambda: math.nan, lambda: math.inf,
        lambda: -math.inf, lambda: "", lambda: "x", lambda: "x" * 1_000_000, lambda: [], lambda: {}, lambda: [node],
        lambda: {"a": node}, lambda: str(node)[:1000], lambda: 2**63, lambda: -(2**40), lambda: 0.5, lambda: NEST,
    ]  # fmt: skip
    if isinstance(node, (int, float)) and not isinstance(node, bool):
        options += [lambda: -node, lambda: node * 1000, lambda: node + 1, lambda: node - 1, lambda: node * 10**6] * 2
    if isinstance(node, str):
        options += [lambda: node + "x", lambda: node[:-1], lambda: "../../" + node, lambda: node.upper(), lambda: "os.system",
                    lambda: "tokenworld.heads.os.system", lambda: "attacked:X-v0", lambda: "\x00" + node]  # fmt: skip
    if isinstance(node, (list, tuple)):
        options += [lambda: list(node) * 2, lambda: list(node)[:-1], lambda: list(node) * 1000, lambda: list(node)[::-1]] * 2
    if isinstance(node, dict):
        options += [lambda: {**node, "unheard_of": 1}, lambda: list(node), lambda: dict(list(node.items())[:1])] * 2
    return rng.choice(options)()


def _changed_tensor(node: torch.Tensor, rng: random.Random) -> torch.Tensor:
    options: list[Callable[[], torch.Tensor]] = [
        lambda: node.flatten()[:-1], lambda: node.unsqueeze(0), lambda: node.flatten()[:0], lambda: node.to(torch.float64),
        lambda: node.to(torch.int8), lambda: torch.full_like(node, -1 if node.dtype != torch.bool else 1),
        lambda: torch.zeros(1).expand(10**10), lambda: torch.zeros(1, dtype=node.dtype).expand(2**40),
        lambda: torch.cat([node.flatten(), node.flatten()]), lambda: node.to(torch.complex64), lambda: node.bool(),
        lambda: torch.full_like(node, 100) if node.dtype != torch.bool else ~node, lambda: torch.zeros_like(node),
    ]  # fmt: skip
    if node.is_floating_point():
        options += [lambda: torch.full_like(node, math.nan), lambda: torch.full_like(node, math.inf), lambda: node * 1e30]
    elif node.dtype == torch.int64:
        options += [lambda: torch.full_like(node, 2**62), lambda: node - 1000]
    return rng.choice(options)()


def _short(value: Any) -> str:
    if torch.is_tensor(value):
        return f"tensor {value.dtype} {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) < 40 else f"{text[:30]}... ({len(text)} characters)"


# ---------------------------------------------------------------------------------------------------------------------
# Text formats


def json_text(content: bytes, rng: random.Random) -> Mutation:
    """One value of a JSON file changed, or the text damaged."""
    if rng.random() < 0.2:
        return raw(content, rng)
    value, what = tree(json.loads(content), rng)
    return _nested(json.dumps(value, indent=1, default=str), rng), what


def json_line(content: bytes, rng: random.Random) -> Mutation:
    """One line of a file of JSON lines changed."""
    lines = content.splitlines(keepends=True)
    i = rng.randrange(len(lines))
    lines[i], what = json_text(lines[i].strip(), rng)
    return b"".join(line.rstrip(b"\n") + b"\n" for line in lines), f"line {i}: {what}"


def yaml_text(content: bytes, rng: random.Random) -> Mutation:
    """One value of a YAML file changed, the text damaged, or something of YAML's own inserted."""
    chance = rng.random()
    if chance < 0.1:
        return raw(content, rng)
    if chance < 0.2:
        lines = content.decode().splitlines()
        laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9)
        )
        extra = rng.choice((laughs, "x: &x [*x]", "x: !!python/object/apply:os.system ['true']", "\tx: 1", "? [a, b]\n: c",
                            "<<: {a: 1}", "x: !!binary aGVsbG8=", "x: 2001-01-01", "1: 2", "null: 1",
                            "%YAML 9.9", "--- \n--- "))
        at = rng.choice([i for i, line in enumerate(lines) if not line.startswith(" ")])
        return "\n".join([*lines[:at], extra, *lines[at:]]).encode(), f"inserted: {extra[:30]!r}"
    value, what = tree(yaml.safe_load(content), rng)
    return _nested(yaml.safe_dump(value, sort_keys=False), rng, quotes=("",)), what


def _nested(text: str, rng: random.Random, quotes: tuple[str, ...] = ('"',)) -> bytes:
    depth = rng.choice((500, 3000, 50_000))
    for quote in (*quotes, "'", '"'):
        text = text.replace(f"{quote}{NEST}{quote}", "[" * depth + "]" * depth)
    return text.encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------------------------------------------------------------
# Safetensors, archives


def safetensors(content: bytes, rng: random.Random) -> Mutation:
    """Header or numbers of a safetensors file changed; or its bytes."""
    chance = rng.random()
    if chance < 0.3:
        return raw(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    if chance < 0.6:
        header, what = tree(header, rng)
    elif chance < 0.8:
        first, last = header[name]["data_offsets"]
        kind = {"F32": "<f4", "I64": "<i8", "U8": "u1", "BOOL": "u1"}.get(header[name]["dtype"], "u1")
        x = np.frombuffer(body[first:last], kind).copy()
        value = rng.choice((np.nan, np.inf, 1e38, -1, 200)) if kind == "<f4" else rng.choice((-1, 200, 2**62, 255))
        with np.errstate(all="ignore"):
            x[rng.randrange(len(x)) if rng.random() < 0.5 and len(x) else slice(None)] = np.asarray(value).astype(x.dtype)
        body, what = body[:first] + x.tobytes() + body[last:], f"{name} holds {value}"
    elif chance < 0.9:
        header = {(f"module.{key}" if key == name else key): value for key, value in header.items()}
        what = f"{name} renamed"
    else:
        header[name] = header[name] | {"dtype": rng.choice(("F64", "F16", "BF16", "I32", "BOOL", "F8_E4M3", "U64", "C64"))}
        what = f"{name} of dtype {header[name]['dtype']}"
    text = _nested(json.dumps(header, default=str), rng)
    return struct.pack("<Q", len(text)) + text + body, what


def archive(content: bytes, rng: random.Random, member: Callable[[bytes, random.Random], Mutation] = raw) -> Mutation:
    """A member of a zip file damaged, absent, renamed or compressed, with a right CRC; or the archive's own bytes."""
    chance = rng.random()
    if chance < 0.25:
        return raw(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = rng.choice(list(members))
    pickled = [each for each in members if each.endswith(".pkl")]
    if pickled and rng.random() < 0.5:
        name = pickled[0]
    method = zipfile.ZIP_STORED
    if chance < 0.75:
        members[name], what = member(members[name], rng)
    elif chance < 0.85:
        del members[name]
        what = "absent"
    elif chance < 0.95:
        members[name + "x"] = members.pop(name)
        what = "renamed"
    else:
        members[name], what, method = members[name] + bytes(BOMB), "a bomb", zipfile.ZIP_DEFLATED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as file:
        for each, inner in members.items():
            file.writestr(each, inner)
    return buffer.getvalue(), f"member {name}: {what}"


def torch_file(content: bytes, rng: random.Random) -> Mutation:
    """One value of a torch file changed; or its archive damaged."""
    if rng.random() < 0.4:
        return archive(content, rng)
    value, what = tree(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), rng)
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue(), what


def arrays(content: bytes, rng: random.Random) -> Mutation:
    """An array of an npz file changed in type, shape, length or numbers; or its archive damaged."""
    if rng.random() < 0.4:
        return archive(content, rng)
    with np.load(io.BytesIO(content)) as file:
        found = {name: file[name] for name in file.files}
    name = rng.choice(list(found))
    x = np.nan_to_num(found[name], posinf=1e4, neginf=-1e4)
    options = {
        "shorter": x[:-1], "longer": np.concatenate([x, x]), "two-dimensional": x[None], "empty": x[:0], "no array": x.sum(),
        "text": x.astype(str), "complex": x.astype(complex), "nan": np.full(x.shape, np.nan), "negative": -x.astype(float),
        "inf": np.full(x.shape, np.inf), "big": np.zeros(5 * 10**7), "equal": np.zeros_like(x),
        "float16": x.clip(-1e4, 1e4).astype(np.float16),
        "records": np.zeros(len(x), [("a", "f4")]), "dates": x.astype(np.int64).astype("M8[s]"),
        "little": x.astype(">f8"),
    }  # fmt: skip
    what = rng.choice(list(options))
    found[name] = options[what]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **found)
    return buffer.getvalue(), f"{name}: {what}"


# ---------------------------------------------------------------------------------------------------------------------
# Episodes


def records(content: bytes) -> list[bytes]:
    """The payloads of an intact shard."""
    found, at = [], 0
    while at < len(content):
        length = HEADER.unpack_from(content, at)[2]
        found.append(content[at + HEADER.size : at + HEADER.size + length])
        at += HEADER.size + length
    return found


def shard_of(payloads: list[bytes]) -> bytes:
    return b"".join(HEADER.pack(MAGIC, 1, len(payload), zlib.crc32(payload)) + payload for payload in payloads)


@functools.cache
def bomb(size: int = BOMB) -> bytes:
    return zlib.compress(bytes(size), 1)


def shard(content: bytes, rng: random.Random) -> Mutation:
    """A record of a shard damaged within a right checksum, lost, doubled or out of order."""
    payloads = records(content)
    i = rng.randrange(len(payloads))
    kind = rng.choice(("payload", "inner", "inner", "inner", "bomb", "late bomb", "lost", "doubled", "reordered", "header"))
    if kind == "payload":
        payloads[i], what = raw(payloads[i], rng)
    elif kind == "inner":
        inner, what = safetensors(zlib.decompress(payloads[i]), rng)
        payloads[i] = zlib.compress(inner, 1)
    elif kind == "bomb":
        payloads[i], what = bomb(), f"a bomb of {BOMB} bytes"
    elif kind == "late bomb":
        payloads[i], what = zlib.compress(zlib.decompress(payloads[i]) + bytes(BOMB), 1), "a bomb behind the arrays"
    elif kind == "lost":
        del payloads[i]
        what = "lost"
    elif kind == "doubled":
        payloads.insert(rng.randrange(len(payloads)), payloads[i])
        what = "doubled"
    elif kind == "reordered":
        rng.shuffle(payloads)
        what = "reordered"
    else:
        made = bytearray(shard_of(payloads))
        at = sum(HEADER.size + len(payload) for payload in payloads[:i])
        field, value = rng.choice((("<I", 4), ("<Q", 8))), rng.choice((0, 1, 2**31, 2**32 - 1))
        struct.pack_into(field[0], made, at + field[1], value)
        return bytes(made), f"record {i}: {value} in its header"
    return shard_of(payloads), f"record {i}: {what}"
