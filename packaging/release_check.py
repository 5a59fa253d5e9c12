"""Whether a tag, the package, changelog and citation state one version: python packaging/release_check.py v1.2.3.

Without a tag, the package's version is compared with the other files'; the changelog may still be at "Unreleased".
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = {
    "python/histo_export/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
    "packaging/conda/recipe.yaml": r"^  version: (.+)$",
    "packaging/vcpkg/histo/vcpkg.json": r'^  "version": "(.+)",$',
    "CHANGELOG.md": r"^## (\d+\.\d+\.\d+\S*)",
}
"""File → what finds the version in it; of several, the first, which is the newest."""


def stated(path: str) -> str:
    """The version that a file states, or "none"."""
    found = re.search(PLACES[path], (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "none"


def main() -> None:
    """Ends with exit code 1 and a line for each file that states another version."""
    package = next(iter(PLACES))
    if len(sys.argv) == 1:
        wanted, of, places = stated(package), "the package", [path for path in PLACES if path != "CHANGELOG.md"]
    elif len(sys.argv) == 2 and sys.argv[1].startswith("v"):
        wanted, of, places = sys.argv[1][1:], "the tag", list(PLACES)
    else:
        sys.exit("The tag is missing: make release-version TAG=v1.2.3")
    wrong = [f"{path} states version {stated(path)}, and {of} {wanted}" for path in places if stated(path) != wanted]
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"All of {', '.join(places)} state version {wanted}.")


if __name__ == "__main__":
    main()
