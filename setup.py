"""Build the compiled modules; everything else is declared in pyproject.toml.

Environment switches (each "1" or unset):
    HILUM_SANITIZE        AddressSanitizer and UBSan, little optimisation: for `make fuzz`
    HILUM_PLANT_OVERREAD  an over-read of one byte, which `make fuzz` must find
    HILUM_ANNOTATE        also write Cython's cost annotation beside each .pyx
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

sanitize = os.environ.get("HILUM_SANITIZE") == "1"
annotate = os.environ.get("HILUM_ANNOTATE") == "1"

cflags = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
ldflags = []
macros = []
if sanitize:
    cflags += ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
    ldflags += ["-fsanitize=address,undefined"]
else:
    cflags += ["-O3"]
if os.environ.get("HILUM_PLANT_OVERREAD") == "1":
    macros += [("HILUM_PLANT_OVERREAD", "1")]


def extension(name, *includes):
    source = f"src/{name}.pyx"
    return Extension(
        f"hilum.{name}",
        [source],
        depends=[source, *includes],  # else the sdist has the generated C and not its source
        define_macros=macros,
        extra_compile_args=cflags,
        extra_link_args=ldflags,
    )


setup(
    ext_modules=cythonize(
        [
            extension("_fastparse", "src/_sequence_tags.pxi"),
            extension("_fastio"),
            extension("_fastpack"),
            extension("_fastread"),
            extension("_multipart"),
            extension("_dicomjson"),
        ],
        annotate=annotate,
    )
)
