"""What works on this machine's NVIDIA GPU: one row for each thing, most important first, within eight minutes.

    python benchmarks/gpu_check.py                          # or make gpu-check
    python benchmarks/gpu_check.py --rows torchscript,bench   # these, and the rows that they need
    python benchmarks/gpu_check.py --device cpu             # the code of the rows, on the CPU with small tiles

It needs torch and a light installation of this project, and no network. A row that needs more is not run, and says
what it needs. Each row runs in a process of its own (`gpu_rows.py`), so that a crash is the end of that row alone, and
is in the JSON file as soon as it has ended. The exit code is 1 if a row failed. docs/gpu.md explains the rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    from histo_export.errors import HistoError, UsageError, not_written
    from histo_export.files import write_atomic
    from histo_export.machine import this_machine, versions, why_no_driver
    from histo_export.strict_json import dump_json, read_json
except ImportError as error:
    raise SystemExit(
        f"{sys.executable}: lacks histo_export ({error}). Install its wheel there: pip install …"
    ) from None

from gpu_rows import ROWS, Row

COMMAND = (sys.executable, str(Path(__file__).with_name("gpu_rows.py")))
FORMAT = 1
MINUTES = {"cuda": 8.0, "cpu": 60.0}
"""Device → the default of `--minutes`."""
PATIENCE = {"cuda": 1, "cpu": 5}
"""Device → factor on the limits of the rows, which are for a machine with a GPU and the CPUs that belong to one."""
LOG_LINES = 30
"""The last lines that a failed row wrote, which the JSON keeps."""


@dataclass
class Result:
    """What came out of a row.

    Attributes:
        row, what: its name, and what it shows.
        status: "passed", "failed" or "not run".
        reason: why it failed or was not run.
        seconds: that its process took.
        figures: what it measured.
        log: of a failed row, the end of what it and its libraries wrote.
    """

    row: str
    what: str
    status: str
    reason: str | None = None
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For a terminal."""
        return f"{self.status:8} {self.row:22} {self.seconds:6.1f} s  {self.reason or self.what}"


class Check:
    """One run: its rows so far, and the file that always holds them.

    Args:
        rows: in the order in which they run; the rows that they need are among them.
        device: "cuda" or "cpu".
        budget_s: seconds for all rows together.
        out: the JSON file. Written before the first row, after each row, and at the end.
        command: the program of a row.

    Raises:
        HistoError: `out` can't be written.
    """

    def __init__(
        self, rows: Sequence[Row], device: str, budget_s: float, out: Path, command: Sequence[str] = COMMAND
    ) -> None:
        self.rows, self.device, self.budget_s, self.out, self.command = rows, device, budget_s, out, command
        self.results: dict[str, Result] = {}
        self.created = datetime.now(UTC).isoformat(timespec="seconds")
        self.began = time.monotonic()
        self.machine = this_machine().model_dump()

    def run(self) -> None:
        """Runs all rows; KeyboardInterrupt ends it, and the row that runs then counts as not run."""
        no_device = why_no_driver() if self.device == "cuda" else None
        with tempfile.TemporaryDirectory(prefix="histo-gpu-check-") as folder:
            for row in self.rows:
                try:
                    self.write("running", row.name)
                    self.results[row.name] = self.result(row, Path(folder), no_device)
                except KeyboardInterrupt:
                    self.results.setdefault(row.name, Result(row.name, row.what, "not run", "interrupted"))
                    raise
                print(self.results[row.name].line(), flush=True)
        self.write("complete")

    def result(self, row: Row, folder: Path, no_device: str | None) -> Result:
        """What comes out of a row, whether it is started or not."""
        reason = f"no device: {no_device}" if no_device else self.why_not(row)
        return Result(row.name, row.what, "not run", reason) if reason else self.start(row, folder)

    def why_not(self, row: Row) -> str | None:
        """Why a row is not to be started; None where it is."""
        for name in row.after:
            before = self.results[name]
            if before.status != "passed":
                return before.reason if before.status == "not run" else f"the row {name} failed"
        if missing := [name for name in row.needs if importlib.util.find_spec(name) is None]:
            return f"needs {', '.join(missing)}"
        left = self.budget_s - (time.monotonic() - self.began)
        if left < self.limit_s(row):
            return f"may take {self.limit_s(row):.0f} s, and {max(0.0, left):.0f} s are left: add --minutes"
        return None

    def limit_s(self, row: Row) -> float:
        """Seconds after which a row is ended."""
        return row.limit_s * PATIENCE[self.device]

    def start(self, row: Row, folder: Path) -> Result:
        """Runs a row in a process of its own, and ends it with all that it started when its time is over."""
        file, log = folder / f"{row.name}.json", folder / f"{row.name}.log"
        began = time.monotonic()
        result = Result(row.name, row.what, "failed")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*self.command, row.name, self.device, str(folder), str(file)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(self.limit_s(row))
                result.reason = f"signal {-status} ended it" if status < 0 else f"it ended with exit code {status}"
            except subprocess.TimeoutExpired:
                result.reason = f"it took more than {self.limit_s(row):.0f} s"
            finally:
                _end(process)
        result.seconds = round(time.monotonic() - began, 1)
        with suppress(OSError, ValueError):  # a row that died has written nothing
            for name, value in read_json(file).items():
                setattr(result, name, value)
        if result.status == "failed":
            result.log = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return result

    def write(self, state: str, running: str | None = None) -> None:
        """Writes the file. `state` is "running", "complete" or "interrupted"."""
        content = {
            "format": FORMAT,
            "state": state,
            "running": running,
            "created": self.created,
            "seconds": round(time.monotonic() - self.began, 1),
            "budget_s": self.budget_s,
            "device": self.device,
            "machine": self.machine,
            "versions": versions(),
            "rows": [asdict(result) for result in self.results.values()],
        }
        try:
            write_atomic(self.out, dump_json(content, indent=1) + "\n")
        except OSError as error:
            raise not_written(self.out, error) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a row's process and what it started: a hung one would keep the GPU."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def chosen(names: str | None) -> list[Row]:
    """The rows of `--rows` and all that they need, in the order of `ROWS`; UsageError for an unknown one."""
    by_name = {row.name: row for row in ROWS}
    wanted = set(by_name) if names is None else set()
    pending = [] if names is None else [name.strip() for name in names.split(",")]
    while pending:
        name = pending.pop()
        if name not in by_name:
            raise UsageError(f"--rows {name}", "is unknown", f"Choose from {', '.join(by_name)}")
        if name not in wanted:
            wanted.add(name)
            pending += by_name[name].after
    return [row for row in ROWS if row.name in wanted]


def main(arguments: Sequence[str] | None = None, command: Sequence[str] = COMMAND) -> int:
    """The exit code: 0, 1 if a row failed, 2 for wrong use, 130 after Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", metavar="ROW,ROW,…", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--minutes", type=float, help="for all rows together; default: 8, with --device cpu 60")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="default: gpu-check.json")
    options = parser.parse_args(arguments)
    minutes = MINUTES[options.device] if options.minutes is None else options.minutes
    try:
        check = Check(chosen(options.rows), options.device, 60 * minutes, options.out, command)
        check.write("running")
        try:
            check.run()
        except KeyboardInterrupt:
            check.write("interrupted")
            print(f"interrupted; {options.out} has the rows so far", file=sys.stderr)
            return 130
    except HistoError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    statuses = [result.status for result in check.results.values()]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in ("passed", "failed", "not run"))
    print(f"{counts}. {options.out} has all figures.")
    return int("failed" in statuses)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    raise SystemExit(main())
