"""Classifies tiles through the C interface, with nothing but Python: queue_tiles.py LIBHISTO MODEL HEIGHT WIDTH TILE...

Tiles are files of raw RGB bytes. The library's own Python module is the comfortable way; this shows what any language
that can call C has to do.
"""

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint64, c_void_p
from pathlib import Path


class QueueOptions(ctypes.Structure):
    _fields_ = [(name, c_size_t) for name in ("struct_size", "max_batch", "max_wait_us", "capacity")]


class Answer(ctypes.Structure):
    _fields_ = [
        ("id", c_uint64),
        ("status", c_int),
        ("logits", POINTER(c_float)),
        ("classes", c_size_t),
        ("error", c_char_p),
    ]


ANSWER_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, POINTER(Answer))


def load(path: str) -> ctypes.CDLL:
    """The library with the types of what is called below; without them ctypes would cut pointers and sizes."""
    histo = ctypes.CDLL(path)
    histo.histo_last_error.restype = c_char_p
    histo.histo_model_open.argtypes = [c_char_p, POINTER(c_void_p)]
    histo.histo_engine_create.argtypes = [c_void_p, c_void_p, POINTER(c_void_p)]
    histo.histo_queue_create.argtypes = [c_void_p, POINTER(QueueOptions), POINTER(c_void_p)]
    histo.histo_queue_submit.argtypes = [
        *(c_void_p, c_char_p, c_size_t, c_size_t, c_size_t),
        *(ANSWER_CALLBACK, c_void_p, POINTER(c_uint64)),
    ]
    histo.histo_queue_drain.argtypes = [c_void_p]
    for free in (histo.histo_model_free, histo.histo_engine_free, histo.histo_queue_free):
        free.restype, free.argtypes = None, [c_void_p]
    return histo


def main(library: str, model_path: str, height: str, width: str, *tiles: str) -> None:
    histo = load(library)

    def check(status: int) -> None:
        if status != 0:
            sys.exit(f"queue_tiles: {histo.histo_last_error().decode()} (error {status})")

    logits: dict[int, list[float]] = {}  # by submission
    errors: dict[int, str] = {}

    @ANSWER_CALLBACK  # kept in a variable as long as the queue may call it
    def take(_user: int | None, answer: "ctypes._Pointer[Answer]") -> None:
        given = answer.contents
        if given.status == 0:
            logits[given.id] = given.logits[: given.classes]  # copied: it is valid during the call
        else:
            errors[given.id] = given.error.decode()

    model, engine, queue = c_void_p(), c_void_p(), c_void_p()
    options = QueueOptions(ctypes.sizeof(QueueOptions), max_batch=8, max_wait_us=2000)
    try:
        check(histo.histo_model_open(model_path.encode(), byref(model)))
        check(histo.histo_engine_create(model, None, byref(engine)))
        check(histo.histo_queue_create(engine, byref(options), byref(queue)))
        submitted = []
        for tile in tiles:
            pixels, number = Path(tile).read_bytes(), c_uint64()
            check(
                histo.histo_queue_submit(queue, pixels, len(pixels), int(height), int(width), take, None, byref(number))
            )
            submitted.append(number.value)
        check(histo.histo_queue_drain(queue))
    finally:
        histo.histo_queue_free(queue)
        histo.histo_engine_free(engine)
        histo.histo_model_free(model)
    for tile, number in zip(tiles, submitted, strict=True):
        values = [f"{value:.9g}" for value in logits[number]] if number in logits else [errors[number]]
        print(tile, *values, sep="\t")


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
