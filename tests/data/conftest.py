"""An IDX writer that shares nothing with the reader."""

import struct

import numpy as np
import pytest


@pytest.fixture(scope="session")
def idx_bytes():
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}

    def write(array: np.ndarray) -> bytes:
        kind = array.dtype.str[1:]
        header = bytes([0, 0, codes[kind], array.ndim])
        header += struct.pack(f">{array.ndim}I", *array.shape)
        return header + array.astype(">" + kind).tobytes()

    return write
