"""Finds and loads the compiled kernels of the best instruction level that this CPU runs.

Knows names, files and C signatures; knows nothing of tensors.
"""

import ctypes
from ctypes import c_float, c_int, c_int64, c_size_t, c_ssize_t, c_void_p
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

LEVELS = ("portable", "avx2", "avx512", "avx512bf16")
"""Instruction levels, each running whatever the one before runs. The C++ side numbers them in this order."""


@dataclass(frozen=True, slots=True)
class KernelsUnavailable:
    """Why there are no compiled kernels here, as one line for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class KernelLibrary:
    """One level's shared object with its functions declared."""

    level: str
    functions: ctypes.CDLL


def load_library(level: str | None = None, directory: Path | None = None) -> KernelLibrary | KernelsUnavailable:
    """Loads `level`, or the best that was built and that this CPU runs. ValueError: no such level."""
    if level is not None and level not in LEVELS:
        raise ValueError(f"unknown instruction level {level!r}; known are {', '.join(LEVELS)}")
    directory = Path(__file__).parent if directory is None else directory
    portable = _open("portable", directory)
    if isinstance(portable, KernelsUnavailable):
        return portable
    supported = LEVELS[: portable.distllm_best_level() + 1]
    if level is not None and level not in supported:
        return KernelsUnavailable(f"this CPU does not run {level} kernels; it runs {', '.join(supported)}")
    for candidate in [level] if level is not None else reversed(supported):
        functions = _open(candidate, directory)
        if isinstance(functions, ctypes.CDLL):
            return KernelLibrary(candidate, functions)
    return KernelsUnavailable(f"the {level} kernels were not built")


def runnable_levels(directory: Path | None = None) -> tuple[str, ...]:
    """The levels that are built and that this CPU runs, the best last."""
    return tuple(level for level in LEVELS if isinstance(load_library(level, directory), KernelLibrary))


def _open(level: str, directory: Path) -> ctypes.CDLL | KernelsUnavailable:
    paths = [directory / f"_cpu_{level}{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return KernelsUnavailable(
            "the CPU kernels were not built (no C++ compiler at install); install g++ and reinstall distllm"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return KernelsUnavailable(f"the CPU kernels could not be loaded: {error}")
    _declare(library)
    return library


_POINTER, _STRIDE, _SIZE, _INT = c_void_p, c_ssize_t, c_size_t, c_int

_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "best_level": (_INT, []),
    "pool_new": (_POINTER, [_INT]),
    "pool_delete": (None, [_POINTER]),
    "packed_bytes": (_SIZE, [_SIZE, _SIZE, _INT]),
    "advise_huge_pages": (None, [_POINTER, _SIZE]),
    # pool, source, row and column stride, rows, depth, dtype, first row, packed
    "pack": (_INT, [_POINTER, _POINTER, _STRIDE, _STRIDE, _SIZE, _SIZE, _INT, _SIZE, _POINTER]),
    # pool, packed, depth, dtype, ids, count, out
    "read_rows": (_INT, [_POINTER, _POINTER, _SIZE, _INT, _POINTER, _SIZE, _POINTER]),
    # pool, kind, x, stride, dtype, weight, bias, dtype, out, stride, dtype, rows, depth, features
    "linear": (
        _INT,
        [
            _POINTER,
            _INT,
            _POINTER,
            _STRIDE,
            _INT,
            _POINTER,
            _POINTER,
            _INT,
            _POINTER,
            _STRIDE,
            _INT,
            _INT,
            _INT,
            _INT,
        ],
    ),
    # pool, product, codes, rounded, x, stride, dtype, codes, scales, dtype, zeros, group, bias, dtype, out, stride,
    # dtype, rows, depth, features
    "quantized_linear": (
        _INT,
        [
            *[_POINTER, _INT, _INT, _INT, _POINTER, _STRIDE, _INT, _POINTER, _POINTER, _INT, _POINTER, _INT],
            *[_POINTER, _INT, _POINTER, _STRIDE, _INT, _INT, _INT, _INT],
        ],
    ),
    # counters, stride, rank, ranks
    "meet": (None, [_POINTER, _STRIDE, _INT, _INT]),
    "first_bad_slot": (_INT, [_POINTER, _INT, c_int64]),
    # query starts, num computed, tables, stride, width, sequences, rows, blocks
    "first_bad_sequence": (_INT, [_POINTER, _POINTER, _POINTER, _STRIDE, _INT, _INT, _INT, c_int64]),
    # pool, keys and strides, values and strides, dtype, caches, dtype, slots, rows, heads, key dim, value dim
    "write_kv": (
        _INT,
        [_POINTER, *[_POINTER, _STRIDE, _STRIDE] * 2, _INT, _POINTER, _POINTER, _INT, _POINTER, *[_INT] * 4],
    ),
    # the same, with codes and their scales in place of the caches' dtype
    "write_kv_codes": (
        _INT,
        [
            *[_POINTER, *[_POINTER, _STRIDE, _STRIDE] * 2, _INT, _POINTER, _POINTER],
            *[_INT, _POINTER, _POINTER, _POINTER, *[_INT] * 4],
        ],
    ),
    # pool, kind, query and strides, dtype, caches, out and strides, starts, computed, tables, stride, sequences,
    # heads, kv heads, key dim, value dim, scale, softcap, window, sinks, codes, their scales
    "attend": (
        _INT,
        [
            *[_POINTER, _INT, _POINTER, _STRIDE, _STRIDE, _INT, _POINTER, _POINTER, _POINTER, _STRIDE, _STRIDE],
            *[_POINTER, _POINTER, _POINTER, _STRIDE, *[_INT] * 5, c_float, c_float, _INT, _POINTER],
            *[_INT, _POINTER, _POINTER],
        ],
    ),
    # pool, x and strides, dtype, weight, dtype, Gemma's way, eps, out, rows, heads, width
    "rms_norm": (
        _INT,
        [_POINTER, _POINTER, _STRIDE, _STRIDE, _INT, _POINTER, _INT, _INT, c_float, _POINTER, _INT, _INT, _INT],
    ),
    # pool, activation, x, stride, dtype, out, rows, width
    "gated": (_INT, [_POINTER, _INT, _POINTER, _STRIDE, _INT, _POINTER, _INT, _INT]),
    # layer, rows
    "decoder_layer_scratch": (_SIZE, [_POINTER, _INT]),
    # pool, layer, cache, step, x, out
    "decoder_layer": (_INT, [_POINTER] * 6),
    # pool, x and strides, dtype, cos, sin, stride, rows, heads, width
    "rotary": (
        _INT,
        [_POINTER, _POINTER, _STRIDE, _STRIDE, _INT, _POINTER, _POINTER, _STRIDE, _INT, _INT, _INT],
    ),
}


def _declare(library: ctypes.CDLL) -> None:
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"distllm_{name}")
        function.restype, function.argtypes = result, arguments
