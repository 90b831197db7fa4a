"""What a value is, as JSON: the same text from two processes means the same value of the same type.

Runs in the real libraries' environments too, so it needs nothing of shardfs.
"""

import decimal
import hashlib
import io

import msgpack
import numpy as np


def sha(data):
    return hashlib.sha256(data).hexdigest()


def describe(value):
    """A JSON-able description. Images are told by mode, size and pixels, whoever decoded them."""
    if hasattr(value, "tobytes") and hasattr(value, "mode"):
        return ["image", value.mode, list(value.size), sha(value.tobytes())]
    if isinstance(value, np.ndarray):
        dtype = str(value.dtype.descr) if value.dtype.fields else value.dtype.str
        return ["ndarray", dtype, list(value.shape), sha(np.ascontiguousarray(value).tobytes())]
    if isinstance(value, np.generic):
        return ["scalar", value.dtype.str, value.tobytes().hex()]
    if isinstance(value, msgpack.ExtType):
        return ["ext", value.code, value.data.hex()]
    if isinstance(value, dict):
        return ["dict", [[describe(key), describe(item)] for key, item in value.items()]]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [describe(item) for item in value]]
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", len(value), sha(bytes(value))]
    if isinstance(value, (decimal.Decimal, complex, int, str, bool, type(None), msgpack.Timestamp)):
        return [type(value).__name__, str(value)]
    raise TypeError(type(value))


def opened(value):
    """Bytes of an image file as the image that the library would give."""
    import PIL.Image

    image = PIL.Image.open(io.BytesIO(value))
    image.load()
    return image
