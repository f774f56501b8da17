"""Builds the CPU kernels: the same C++ sources once for each instruction level, loaded at run time by ctypes.

Every level is optional. Without a compiler, or with one that does not know a level's flags, the install succeeds;
distllm.engine.kernels then says what is missing and the reference path serves.
"""

import copy
import os
import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("engine/kernels/src")
COMMON_FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-pthread",
]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"]
LEVEL_FLAGS: dict[str, list[str]] = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    LEVEL_FLAGS |= {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": AVX512_FLAGS,
        "avx512bf16": [*AVX512_FLAGS, "-mavx512bf16", "-mavx512vnni"],
    }


def level(name: str, flags: list[str]) -> Extension:
    return Extension(
        f"distllm.engine.kernels._cpu_{name}",
        sources=[str(path) for path in sorted(SOURCES.glob("*.cpp"))],
        depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
        extra_compile_args=[*COMMON_FLAGS, *flags],
        extra_link_args=["-pthread"],
        language="c++",
        optional=True,
    )


class BuildLevels(build_ext):
    """Builds the levels side by side, each with object files of its own."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        alone = copy.copy(self)
        alone.build_temp = os.path.join(self.build_temp, ext.name)
        super(BuildLevels, alone).build_extension(ext)


setup(
    ext_modules=[level(name, flags) for name, flags in LEVEL_FLAGS.items()],
    cmdclass={"build_ext": BuildLevels},
)
