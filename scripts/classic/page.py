"""Fill the table of docs/classic.md from docs/classic/*.json, or with `--check` say what is wrong with the page.

Command   python scripts/classic/page.py [--check]

The page names the demonstrations, by their commands, in the order of the lecture: that is the order `make classic` runs
them in.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "classic.md"
BEGIN, END = "<!-- table: filled by scripts/classic/page.py -->", "<!-- end of the table -->"
HELPERS = ("common", "demo_data", "page", "run_all")


def demonstrations() -> list[str]:
    """Names of the demonstrations in the order of the page."""
    return re.findall(r"^python scripts/classic/(\w+)\.py$", PAGE.read_text(encoding="utf-8"), flags=re.M)


def scripts() -> list[str]:
    """Names of the demonstrations that there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HELPERS)


def records(folder: Path = ROOT / "docs" / "classic") -> list[dict[str, Any]]:
    """What each demonstration measured, those that have been run."""
    paths = [folder / f"{name}.json" for name in demonstrations()]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def table(found: list[dict[str, Any]]) -> str:
    """The claims as a Markdown table."""
    lines = ["| claim | measured | reference | where the reference comes from | met |", "|---|---|---|---|---|"]
    for record in found:
        for row in record["rows"]:
            cells = (
                row["claim"],
                f"{row['measured']:.4g}",
                row["reference"],
                row["from"],
                "yes" if row["met"] else "NO",
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    minutes = sum(record["seconds"] for record in found) / 60
    lines.append(f"\n{len(found)} demonstrations, {minutes:.0f} minutes together on the machine that wrote this table.")
    return "\n".join(lines)


def number(value: float) -> str:
    """Four digits, or a whole count."""
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"


def filled(text: str, found: list[dict[str, Any]]) -> str:
    """The page with its table brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}"


def problems() -> list[str]:
    """What is wrong with the page: missing or strange numbers, figures, sections, an old table."""
    text, found = PAGE.read_text(encoding="utf-8"), records()
    wrong = [f"{name} has no section with its command" for name in scripts() if name not in demonstrations()]
    wrong += [f"{name} has a section and no script" for name in demonstrations() if name not in scripts()]
    wrong += [f"{name} shows no figure" for name in demonstrations() if f"](images/classic/{name}.png)" not in text]
    run = {record["name"] for record in found}
    wrong += [f"{name} has no numbers; run it" for name in demonstrations() if name not in run]
    for record in found:
        wrong += [f"{record['name']} holds the numbers of a smoke run"] if record["smoke"] else []
        wrong += [f"{record['name']}: not met: {row['claim']}" for row in record["rows"] if not row["met"]]
    if filled(text, found) != text:
        wrong.append("the table is old; type: python scripts/classic/page.py")
    return wrong


def main() -> None:
    """Fill the table, or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; say what is wrong")
    if not parser.parse_args().check:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), records()), encoding="utf-8")
    if wrong := problems():
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
