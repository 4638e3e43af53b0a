"""What does ``make demo`` end with? Runs it (finished stages are skipped) and keeps its records.

    python -m experiments.demo [--collect]

Writes results.json beside this file, from which README has its table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from hvlm.evaluation import results

HERE = Path(__file__).parent
RUN = Path("runs/demo")
COMMAND = "make demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collect", action="store_true", help="train nothing: write down what is finished")
    if not parser.parse_args().collect:
        subprocess.run([sys.executable, "train.py", "experiment=demo", f"run={RUN.name}"], check=True)
    records = [r | {"question": "demo", "command": COMMAND} for r in results.read(RUN / "results.json")]
    results.write(HERE / "results.json", records)


if __name__ == "__main__":
    main()
