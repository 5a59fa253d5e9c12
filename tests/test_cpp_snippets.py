"""Every snippet of the guide to the C++ library compiles."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What the text around the snippets has introduced.
BEFORE = """
#include <histo/batch_runner.h>
#include <histo/engine.h>
#include <histo/error.h>
#include <vector>

struct Corner { std::size_t x, y; };
bool next_tile(std::span<std::uint8_t> tile);
void save(std::size_t index, std::span<const float> logits);
extern const histo::Engine engine;
extern const std::span<const std::uint8_t> rgb_bytes, memory;
extern const std::vector<Corner> corners;
extern const std::vector<histo::ImageView> tiles;
"""


def test_every_cpp_snippet_of_the_guide_compiles(tmp_path: Path) -> None:
    page = (ROOT / "docs/cpp.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```cpp\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(snippets) >= 4
    source = tmp_path / "snippets.cpp"
    functions = [f"void snippet_{number}() {{\n{text}}}\n" for number, text in enumerate(snippets)]
    source.write_text(BEFORE + "".join(functions))
    command = ("c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/cpp/include", "-fsyntax-only", source)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
