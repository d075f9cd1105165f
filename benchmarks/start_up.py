"""How long until smalti answers: `smalti --help` and `import smalti`, beside bare Python and torch.

Every measurement is a fresh process; the commands take turns, so that a slow minute of the machine meets all of them.
The limit is bare Python; importing torch is what a command pays that cannot do without it.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from common import arguments, seconds, table, write


def command(name: str) -> str:
    """The console script installed beside this Python."""
    path = shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise SystemExit(f"{name} is not installed beside {Path(sys.executable).name}: pip install -e .")
    return path


def main() -> None:
    """Measure, print, write."""
    question = "How long until smalti answers?"
    parser = arguments(question)
    parser.add_argument("--repeats", type=int, default=15, help="processes for each command")
    options = parser.parse_args()
    repeats = 2 if options.quick else options.repeats

    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import smalti": [sys.executable, "-c", "import smalti"],
        "smalti --help": [command("smalti"), "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, words in commands.items():
            spent = seconds(partial(subprocess.run, words, check=True, stdout=subprocess.DEVNULL))
            if turn > 0:  # the first turn fills the caches of the disk and writes the bytecode
                taken[name].append(spent)

    medians = {name: statistics.median(times) for name, times in taken.items()}
    bare = medians["python -c pass"]
    rows = [
        {"what": name, "median s": median, "above bare Python s": median - bare, "slowest s": max(taken[name])}
        for name, median in medians.items()
    ]
    table(f"start-up, {repeats} fresh processes each", rows)
    write("start_up", question, options.quick, repeats=repeats, rows=rows)


if __name__ == "__main__":
    main()
