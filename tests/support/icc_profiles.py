"""ICC profiles of the colour spaces that cameras and editors write, made from their primaries and curves."""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = (0.3127, 0.3290)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def matrix(primaries: tuple[tuple[float, float], ...], white: tuple[float, float]) -> np.ndarray:
    """RGB to XYZ (3, 3) of a space, adapted to D50 by Bradford's matrix."""
    columns = np.stack([_xyz(*each) for each in primaries], axis=1)
    columns = columns * np.linalg.solve(columns, _xyz(*white))
    cones = BRADFORD @ D50 / (BRADFORD @ _xyz(*white))
    return np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ columns


def _tag(kind: bytes, body: bytes) -> bytes:
    data = kind + bytes(4) + body
    return data + bytes(-len(data) % 4)


def profile(primaries: tuple[tuple[float, float], ...], white: tuple[float, float], gamma: float | None) -> bytes:
    """A matrix profile of version 4; `gamma` None: sRGB's curve."""
    fixed = lambda values: b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)  # noqa: E731
    curve = (
        _tag(b"para", struct.pack(">HH", 3, 0) + fixed((2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
        if gamma is None
        else _tag(b"para", struct.pack(">HH", 0, 0) + fixed((gamma,)))
    )

    def text(words):
        return _tag(
            b"mluc",
            struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", 2 * len(words), 28) + words.encode("utf-16-be"),
        )

    columns = matrix(primaries, white)
    tags = {
        b"desc": text("test"), b"cprt": text("none"), b"wtpt": _tag(b"XYZ ", fixed(D50)),
        **{name: _tag(b"XYZ ", fixed(columns[:, i])) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }  # fmt: skip
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = 128 + len(table) + len(body)
    head = (
        struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x04000000, b"mntr", b"RGB ", b"XYZ ")
        + bytes(12)
        + b"acsp"
        + bytes(28)
        + fixed(D50)
        + bytes(48)
    )
    return head + table + body


P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
PROFILES = {
    "srgb": profile(SRGB, D65, None), "display-p3": profile(P3, D65, None), "adobe-rgb": profile(ADOBE, D65, 2.19921875),
    "prophoto": profile(PROPHOTO, (0.3457, 0.3585), 1.8), "linear": profile(SRGB, D65, 1.0), "broken": b"not a profile",
}  # fmt: skip
"""Name to bytes of a profile."""
