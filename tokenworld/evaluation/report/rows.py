"""`states.npz` of a report, which may come from anybody: arrays of numbers, and no more memory than the file is worth.

The members of an npz file are compressed, and each begins with a header that says how large it is. Both could lie: the
archive's own sizes are added up before anything is expanded, and each array must be as long as its member.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tokenworld.errors import UserError, first_line

MEMBERS, ROWS = 2000, 2**22  # at most: arrays of a file, rows of an array
CLUSTERS = 100_000  # episodes of a metric, at most: intervals take memory for each
LEAST, RATIO = 16 << 20, 100  # bytes that any file may expand to, and more for each byte of it: a report's own expand to ten
LARGEST = 1e100  # what sums of squares can hold
HEADER = 1024  # bytes of a member before its numbers, at most
DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, RuntimeError, NotImplementedError, KeyError, TypeError, MemoryError, IndexError,
    OverflowError, AttributeError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    """Its arrays (n,) by name, checked against each other. Raises UserError that names what is missing or wrong."""
    try:
        if not path.is_file():
            raise ValueError("it is not there")
        rows = _arrays(path)
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): evaluate again") from None
    for name, x in rows.items():
        owner, kind = name.rsplit("/", 1)[0], name.rsplit("/", 1)[-1]
        is_name = kind in ("state", "cluster")  # of a state or an episode, else what was measured there
        if x.dtype.kind not in ("iu" if is_name else "fiu") or owner in rows and len(rows[owner]) != len(x):
            raise UserError(f"{path} holds {name} of {x.dtype} {x.shape}, expected one number for each row: evaluate again")
        if is_name:
            continue
        if not len(x) or not (np.abs(x.astype(float)) < LARGEST).all():
            raise UserError(f"{path} holds {name} with {'a value that is not finite' if len(x) else 'no row'}: evaluate again")
        if f"{name}/cluster" not in rows:
            raise UserError(f"{path} holds {name} without {name}/cluster, the episode of each row: evaluate again")
        if len(np.unique(rows[f"{name}/cluster"])) > CLUSTERS:
            raise UserError(f"{path} holds {name} of more than {CLUSTERS:,} episodes: evaluate fewer frames")
    return rows


def _arrays(path: Path) -> dict[str, np.ndarray]:
    size = path.stat().st_size
    if not zipfile.is_zipfile(path):
        raise ValueError("it is there, but no npz file")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS or sum(member.file_size for member in members) > LEAST + RATIO * size:
            raise ValueError(f"its {len(members)} members would expand to more than a report has")
        arrays = {member.filename.removesuffix(".npy"): array_of(archive.read(member)) for member in members}
    for name, x in arrays.items():
        if x.ndim != 1 or len(x) > ROWS:
            raise ValueError(f"{name} has shape {x.shape}, expected one number for each row, at most {ROWS:,}")
    return arrays


def array_of(content: bytes, kinds: str = "fiu") -> np.ndarray:
    """The array of a member of an npz file, its type of these kinds. Raises an exception of `DAMAGE`."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, is_fortran, dtype = header(stream, max_header_size=HEADER)
    count, left = math.prod(shape), len(content) - stream.tell()
    if dtype.hasobject or dtype.kind not in kinds or not all(0 <= n <= left for n in shape):
        raise ValueError(f"an array has type {dtype} and shape {shape}, expected one number for each row")
    if count * dtype.itemsize != left:
        raise ValueError(f"an array announces {count} numbers and has {left} bytes")
    flat = np.frombuffer(content, dtype, count, stream.tell()).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if is_fortran else "C")
