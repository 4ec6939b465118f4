"""Build the compiled modules with AddressSanitizer and UBSan into a folder of their own, and fuzz that build.

python tests/fuzz/sanitized.py [--seconds 60] [--seed N] [--planted]

--planted is the proof: a build with an over-read of one byte in it, which the fuzz must find, so the command
then ends well only if it does not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HARNESS = Path(__file__).resolve().parent / "fuzz.py"
FOLDER = ROOT / "build" / "fuzz"
REPORT = 99  # exit code of a process that a sanitizer has ended


class NoSanitizer(Exception):
    """gcc or its AddressSanitizer is not installed."""


class BuildFailed(Exception):
    """The compiler said no; the message is what it said."""


def find_libasan() -> Path:
    """The runtime library, to be loaded before Python.

    Raises:
        NoSanitizer: there is none.
    """
    compiler = os.environ.get("CC", "gcc").split()[0]
    try:
        answer = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True)
    except FileNotFoundError:
        raise NoSanitizer(f"there is no {compiler}") from None
    path = Path(answer.stdout.strip())
    if not path.is_absolute() or not path.exists():  # gcc gives the bare name back where it has none
        raise NoSanitizer(f"{compiler} has no libasan.so (Debian: libgcc-12-dev, with gcc)")
    return path.resolve()


def build(*, planted: bool = False) -> Path:
    """Build unless it is there already; return the folder to put in PYTHONPATH. Safe beside another build.

    Raises:
        BuildFailed: see there.
    """
    folder = FOLDER / ("planted" if planted else "plain")
    stamp = folder / "stamp"
    sources = [ROOT / "setup.py", ROOT / "pyproject.toml", *sorted((ROOT / "src").glob("*.p[yx]*"))]
    digest = hashlib.sha256(sys.version.encode())
    for source in sources:
        digest.update(source.read_bytes())
    package = folder / "src" / "hilum"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        shutil.rmtree(folder, ignore_errors=True)
        package.mkdir(parents=True)
        for source in (*sources, ROOT / "README.md", ROOT / "LICENSE"):
            if source.exists():
                target = folder / source.relative_to(ROOT)
                shutil.copyfile(source, target)
        environment = os.environ | {"HILUM_SANITIZE": "1", "HILUM_PLANT_OVERREAD": "1" if planted else "0"}
        done = subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise BuildFailed(done.stdout)
        stamp.write_text(digest.hexdigest())
    # What is Python in the package is always that of now.
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "src" / "hilum", package, dirs_exist_ok=True, ignore=skip)
    return folder / "src"


def fuzz(
    source: Path, seconds: float, seed: int, *, capture: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run the harness against the build in `source`; exit code 0 if nothing broke."""
    environment = os.environ | {
        "PYTHONPATH": str(source),
        "LD_PRELOAD": str(find_libasan()),
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:exitcode={REPORT}",
        "UBSAN_OPTIONS": f"halt_on_error=1:print_stacktrace=1:exitcode={REPORT}",
        "PYTHONMALLOC": "malloc",  # each buffer is an allocation of its own, with its own end
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    kept = source.parent / "last-input"
    command = [
        sys.executable,
        str(HARNESS),
        "--seconds",
        str(seconds),
        "--seed",
        str(seed),
        "--keep",
        str(kept),
    ]
    pipe = subprocess.PIPE if capture else None
    return subprocess.run(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def main() -> int:
    arguments = argparse.ArgumentParser(description="Fuzz the parser in a sanitizer build.")
    arguments.add_argument("--seconds", type=float, default=60)
    arguments.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    arguments.add_argument("--planted", action="store_true", help="fuzz the build with the planted over-read")
    given = arguments.parse_args()
    try:
        find_libasan()
        print("building with AddressSanitizer and UBSan, into build/fuzz", flush=True)
        source = build(planted=given.planted)
    except (NoSanitizer, BuildFailed) as failure:
        print(failure, file=sys.stderr)
        return 1
    code = fuzz(source, given.seconds, given.seed).returncode
    if code:
        kept = (source.parent / "last-input").relative_to(ROOT)
        print(f"Something broke. The input is {kept}; seed {given.seed}.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
