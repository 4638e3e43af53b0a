"""The bytes of a file with something wrong in them: in what they say, or anywhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from _fuzz_values import changed, dumped
from hypothesis import strategies as st

BYTES = (
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\r",
    b"\n\n",
    b"\r\n",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b";",
    b"\t",
    b":",
    b"1" * 5000,
    b"NaN",
    b"\x1b[31m",
    b"\xe2\x80\xa8",
    b"\0" * 512,
    b"[" * 3000,
    b"-",
    b"1e999",
)


@st.composite
def broken(draw: Any, data: bytes, most: int = 3) -> bytes:
    """Bytes with up to ``most`` things wrong in them: flipped, cut, put in, left out, doubled, overwritten."""
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.sampled_from((1, 1, 2, 4, 8, 64, 512)))
        kind = draw(st.sampled_from(("flip", "flip", "cut", "in", "out", "double", "over", "head")))
        if kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "head":
            data = data[at:]
        elif kind == "out":
            data = data[:at] + data[at + size :]
        elif kind == "double":
            data = data[: at + size] + data[at : at + size] + data[at + size :]
        else:
            new = draw(st.one_of(st.binary(min_size=1, max_size=12), st.sampled_from(BYTES)))
            data = data[:at] + new + data[at + (len(new) if kind == "over" else 0) :]
    return data


def json_files(value: Any) -> st.SearchStrategy[bytes]:
    """A JSON file like this one with something wrong in it: in its values (mostly), in its bytes, or bytes alone."""
    return _files(
        value,
        dumped,
        changed(value).map(dumped),
        changed(value, 1).map(lambda v: b"\xef\xbb\xbf" + dumped(v)),
        changed(value, 1).map(dumped).map(lambda b: b.decode("utf-8", "replace").encode("utf-16")),
    )


def line_files(rows: list[Any]) -> st.SearchStrategy[bytes]:
    """The same of JSON Lines."""

    def joined(changed_rows: Any) -> bytes:
        return b"\n".join(map(dumped, changed_rows)) if isinstance(changed_rows, list) else dumped(changed_rows)

    return _files(rows, joined)


def csv_files(rows: list[dict[str, Any]], mark: str = ",") -> st.SearchStrategy[bytes]:
    """The same of a table of texts."""

    def written(changed_rows: Any) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out, delimiter=mark, lineterminator="\n")
        listed = changed_rows if isinstance(changed_rows, list) else [changed_rows]
        for row in listed:
            cells = row if isinstance(row, list) else [row]
            try:
                writer.writerow(["" if c is None else c if isinstance(c, str) else json.dumps(c) for c in cells])
            except csv.Error:
                out.write(str(cells) + "\n")
        return out.getvalue().encode("utf-8", "surrogatepass")

    return _files([list(rows[0]), *([str(value) for value in row.values()] for row in rows)], written)


def _files(value: Any, written: Callable[[Any], bytes], *more: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """What ``written`` makes of the value with something wrong in it, damaged bytes of it, any bytes, and ``more``."""
    return st.one_of(
        changed(value).map(written),
        changed(value).map(written),
        changed(value, 8).map(written),
        changed(value, 1).map(written).flatmap(broken),
        broken(written(value)),
        st.binary(max_size=64),
        *more,
    )
