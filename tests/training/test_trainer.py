"""What a machine can train on, and what waits for other machines."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from histo_export import _core
from histo_export.errors import UsageError
from histo_export.training import trainer
from histo_export.training.recipes import TrainConfig
from histo_export.training.trainer import check_machine


def _config(**changes: int) -> TrainConfig:
    return TrainConfig(device="cpu", **changes)  # type: ignore[arg-type]


def test_more_devices_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "usable_cpus", lambda: 2)
    assert check_machine(_config(devices=2)).type == "cpu"
    with pytest.raises(UsageError, match=r"--devices 99: is more than the 2 CPUs .* Use --devices 2 or less"):
        check_machine(_config(devices=99))
    monkeypatch.setattr(trainer, "why_no_cuda", lambda: None)
    monkeypatch.setattr(trainer.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=r"--devices 2: is more than the 1 GPU that"):
        check_machine(TrainConfig(devices=2))


@pytest.mark.parametrize("started_by", ["RANK", "SLURM_PROCID"])
def test_several_machines_need_a_launcher(monkeypatch: pytest.MonkeyPatch, started_by: str) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    message = r"--nodes 2: needs a process on each machine.* torchrun --nnodes 2 --nproc-per-node 1"
    with pytest.raises(UsageError, match=message):
        check_machine(_config(nodes=2))
    monkeypatch.setenv(started_by, "0")
    assert check_machine(_config(nodes=2)).type == "cpu"


WAITING = """
import sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from drawn_tiles import coloured_data
from histo_export.spec import ModelSpec
from histo_export.training import trainer
from histo_export.training.run import TrainConfig, train
begin = trainer.SignalsEndConnecting.begin
def tell(self):
    begin(self)
    print("connecting", flush=True)
trainer.SignalsEndConnecting.begin = tell
data = coloured_data(4, 2, 2)
spec = ModelSpec(pool=1, classes=data.classes, crop=32, tile_size=36)
train(data, spec, TrainConfig(device="cpu", nodes=2), Path(sys.argv[2]), progress=False)
"""


@pytest.mark.slow  # a process of its own, because the signal must end it while it is inside torch
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_other_machines(
    tmp_path, free_port: Callable[[], int], number: signal.Signals
) -> None:
    """Rank 1 waits for a rank 0 that is not there."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test"}
    variables |= {"RANK": "1", "LOCAL_RANK": "0", "GROUP_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    command = [sys.executable, "-c", WAITING, str(Path(__file__).parents[1]), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | variables) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"connecting\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        process.send_signal(number)
        try:
            assert process.wait(timeout=30) == -number
        finally:
            process.kill()


@pytest.fixture
def free_port() -> Callable[[], int]:
    def port() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            return int(listener.getsockname()[1])

    return port
