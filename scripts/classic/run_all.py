"""Every classic demonstration, one after the other, and the table of their claims: `make classic`.

Command   python scripts/classic/run_all.py [NAME ...]

Goes on after a failure and ends with an error then. What each prints is kept in runs/classic/NAME.log.
"""

import subprocess
import sys
import time
from pathlib import Path

from page import PAGE, demonstrations, filled, records

ROOT = Path(__file__).parents[2]


def main(names: list[str]) -> int:
    """Run them; the number that failed or met not all of their claims."""
    logs = ROOT / "runs" / "classic"
    logs.mkdir(parents=True, exist_ok=True)
    failed = []
    began = time.monotonic()
    for name in names:
        print(f"{name} ...", end=" ", flush=True)
        started = time.monotonic()
        with open(logs / f"{name}.log", "w", encoding="utf-8") as log:
            script = Path(__file__).with_name(f"{name}.py")
            code = subprocess.run([sys.executable, str(script)], stdout=log, stderr=log, check=False).returncode
        print(
            f"{time.monotonic() - started:.0f} s{'' if code == 0 else f', FAILED: see {logs / name}.log'}", flush=True
        )
        failed += [name] if code else []
    for record in records():
        for row in record["rows"]:
            verdict = "met " if row["met"] else "NOT "
            print(f"{verdict} {row['measured']:>10.4g}  {row['reference']:<28} {row['claim']}")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), records()), encoding="utf-8")
    print(
        f"{len(names)} demonstrations in {(time.monotonic() - began) / 60:.1f} minutes; {len(failed)} failed {failed}"
    )
    return len(failed)


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:] or demonstrations()) else 0)
