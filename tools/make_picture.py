"""Run some commands of Hilum over a folder of DICOM and draw what they print as docs/demo.svg.

python tools/make_picture.py FOLDER
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "demo.svg"
WIDTH = 118
COMMANDS = [
    "hilum import samples --store archive",
    "hilum find studies PatientName='*o*' --limit 5 --order -StudyDate --store archive",
    "hilum find series Modality=CT StudyDate=20040101-20041231 --store archive",
    "hilum verify --store archive",
    "hilum stats --store archive",
]


def main() -> None:
    samples = Path(sys.argv[1]).resolve()
    console = Console(record=True, width=WIDTH, file=open("/dev/null", "w"))  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "samples").symlink_to(samples)
        for command in COMMANDS:
            words = [sys.executable, "-m", "hilum", *shlex.split(command)[1:]]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode not in (0, 1):  # 1: some of the samples are broken on purpose
                sys.exit(done.stderr)
            console.print(Text("$ " + command, style="bold green"), soft_wrap=True)
            for line in done.stdout.splitlines():
                console.print(Text(line[:WIDTH]), soft_wrap=True)
            console.print()
    svg = console.export_svg(title="hilum")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # it works offline
    PICTURE.write_text(re.sub(r"[ \t]+\n", "\n", svg))


main()
