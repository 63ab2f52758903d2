"""Starts several processes of scripts/train.py on this machine, as torchrun does, and ends all when one ends badly.

    python scripts/launch/local.py --processes 4 -- --preset byte-cpu-2 --corpus corpora/python --out runs/byte

What follows `--` goes to scripts/train.py. SIGTERM and Ctrl-C go on to all processes, which save and stop together.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(program: Sequence[str], processes: int, cpu_devices: int | None = None) -> list[subprocess.Popen[bytes]]:
    """Starts a program once for each process, with the addresses that `bltjax.runtime.start` takes.

    Args:
      cpu_devices: CPU devices of each process; None: as the environment says.
    """
    environment = dict(os.environ)
    if cpu_devices is not None:
        flags = [f for f in environment.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        environment["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={cpu_devices}"])
    address = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(processes)]
    return [
        subprocess.Popen([*program, *address, "--process-id", str(i)], env=environment, start_new_session=True)
        for i in range(processes)
    ]


def wait(running: Sequence[subprocess.Popen[bytes]], patience: float = 10.0) -> int:
    """Waits for all; when one ends badly, the others get SIGTERM, and SIGKILL after `patience` seconds.

    Returns:
      The exit status of the first that ended badly, or 0.
    """
    status, deadline = 0, float("inf")
    while any(process.poll() is None for process in running):
        for process in running:
            if process.poll() and not status:
                status, deadline = process.poll() or 0, time.monotonic() + patience
                send(running, signal.SIGTERM)
        if time.monotonic() > deadline:
            send(running, signal.SIGKILL)
        time.sleep(0.05)
    return status or next((process.returncode for process in running if process.returncode), 0)


def send(running: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Sends a signal to all that still run."""
    for process in running:
        if process.poll() is None:
            process.send_signal(number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--cpu-devices", type=int, help="CPU devices of each process")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="-- and the arguments of scripts/train.py")
    chosen = parser.parse_args()
    if chosen.processes < 1:
        parser.error(f"--processes {chosen.processes}: must be at least 1.")
    arguments = chosen.arguments[1:] if chosen.arguments[:1] == ["--"] else chosen.arguments
    running = start([sys.executable, str(TRAIN), *arguments], chosen.processes, chosen.cpu_devices)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: send(running, number))
    status = wait(running, chosen.patience)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
