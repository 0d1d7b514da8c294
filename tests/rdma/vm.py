"""Run a command on this machine's files, under a kernel that has RDMA devices.

`python -m tests.rdma.vm -- COMMAND …` boots a small virtual machine. This machine's file system is
its root, so that Python, environments and libraries are all there; what the command writes stays in
the guest's memory and is gone with it. /dev, /proc, /sys, /run and /dev/shm are the guest's own.
Standard output and error come back as one stream, and the command's exit status is this one's
(124: out of time, 125: the machine did not boot or died).

The guest has two RDMA devices, rxe0 (10.77.0.1) and rxe1 (10.77.0.2), on the ends of a veth pair:
two processes play two hosts, and their packets are real ones (tests/rdma/guest/fabric.sh). The
command finds in its environment RXE_VM=1 and RXE_VM_SCALE: how much slower than on this machine its
programs may be.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kvstore.sizes import parse_size
from tests.rdma import kernel
from tests.rdma.kernel import VmError
from tests.rdma.memlock import limited

OUT_OF_TIME, NO_VM = 124, 125
SCALES = {"kvm": 2, "tcg": 20}
"""How much slower programs may be: measured on Python's start, with some room."""
_GUEST = Path(__file__).resolve().parent / "guest"
_QEMU = "qemu-system-x86_64"
_NOT_PASSED = {"PWD", "OLDPWD", "SHLVL", "_", "TERM"}
_POWER_OFF_S = 10.0


@dataclass(frozen=True)
class Machine:
    """The virtual machine's hardware."""

    accelerator: str
    memory_mib: int
    processors: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _options(arguments)
    deadline = time.monotonic() + options.timeout_s
    try:
        _check_this_machine()
        system = kernel.prepare()
        if options.prepare:
            return 0
        for accelerator in accelerators(options.accel):
            machine = Machine(accelerator, options.memory_mib, options.processors)
            with tempfile.TemporaryDirectory(prefix="kvstore-rxe-") as folder:
                run = _Run(system, machine, Path(folder))
                run.write_job(options.command, options.memlock)
                # A processor that only claims to virtualize gets little time to prove it.
                boot_s = 20.0 if options.accel == "auto" and accelerator == "kvm" else 90.0
                status = run.run(deadline, boot_s)
            if status is not None:
                return status
        return NO_VM
    except VmError as error:
        _say(str(error))
        return NO_VM


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.rdma.vm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    processors = min(4, len(os.sched_getaffinity(0)))
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto")
    parser.add_argument("--memory-mib", type=int, default=2048, help="of the guest")
    parser.add_argument("--processors", type=int, default=processors, help="of the guest")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="for everything")
    parser.add_argument(
        "--memlock",
        type=_size,
        metavar="SIZE",
        help='what the command may lock and register, such as "64kb"; without it, everything',
    )
    parser.add_argument("--prepare", action="store_true", help="only download the kernel")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args(arguments)
    if not options.command and not options.prepare:
        parser.error("say what to run: -- COMMAND …")
    return options


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def find_program(name: str) -> str | None:
    """Return a program's path; a user's PATH may lack the folders of administrators."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _check_this_machine() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise VmError(f"it takes Linux on x86-64, not {sys.platform} on {platform.machine()}")
    for program, package in ((_QEMU, "qemu-system-x86"), ("rdma", "iproute2")):
        if find_program(program) is None:
            raise VmError(f"there is no {program}: sudo apt-get install {package}")


def accelerators(wanted: str) -> list[str]:
    """Return what to try, in this order: KVM where this processor and user have it, then TCG.

    Some sandboxes have a /dev/kvm that a processor without virtualization stands behind; it boots
    no stock kernel in useful time.
    """
    if wanted != "auto":
        return [wanted]
    flags = re.search(r"^flags\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    virtualizes = flags is not None and {"vmx", "svm"} & set(flags[0].split())
    usable = virtualizes and os.access("/dev/kvm", os.R_OK | os.W_OK)
    return ["kvm", "tcg"] if usable else ["tcg"]


def command_script(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, memlock: int | None
) -> str:
    """Return the shell script by which the guest runs the command as it would run here."""
    exports = [
        f"export {name}={shlex.quote(value)}"
        for name, value in environment.items()
        if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and name not in _NOT_PASSED
    ]
    limit = limited(memlock) if memlock is not None else []
    words = shlex.join([*limit, *command])
    return "\n".join([*exports, f"cd {shlex.quote(str(folder))} || exit 125", f"exec {words}", ""])


class _Run:
    """One machine: its job's folder, which the guest sees as /run/job, and its QEMU."""

    def __init__(self, system: kernel.Kernel, machine: Machine, folder: Path) -> None:
        self._system = system
        self._machine = machine
        self._folder = folder
        self._job = folder / "job"
        self._console = folder / "console"

    def write_job(self, command: Sequence[str], memlock: int | None) -> None:
        scale = SCALES[self._machine.accelerator]
        environment = {**os.environ, "RXE_VM": "1", "RXE_VM_SCALE": str(scale)}
        self._job.mkdir()
        for name in ("session.sh", "fabric.sh"):
            shutil.copy(_GUEST / name, self._job)
        script = command_script(command, environment, Path.cwd(), memlock)
        (self._job / "command.sh").write_text(script)
        shutil.copyfile(self._system.initramfs, self._folder / "initramfs")
        with (self._folder / "initramfs").open("ab") as initramfs:  # archives are concatenated
            initramfs.write(kernel.archive({"init": kernel.program(_GUEST / "init.sh")}))

    def run(self, deadline: float, boot_s: float) -> int | None:
        """Boot, and forward the output until the end.

        Returns:
            The command's exit status, or None when the machine did not boot.
        """
        begin = time.monotonic()
        with (self._folder / "qemu").open("wb") as messages:
            process = subprocess.Popen(
                # It must not outlive this process, however that one ends.
                ["setpriv", "--pdeathsig", "KILL", *self._qemu()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=messages,
            )
        try:
            return self._watch(process, begin, deadline, boot_s)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _watch(
        self, process: subprocess.Popen[bytes], begin: float, deadline: float, boot_s: float
    ) -> int | None:
        ready = False
        name = self._machine.accelerator
        end_by = deadline
        status: int | None = None
        while self._forward(process):
            now = time.monotonic()
            if not ready and (self._job / "ready").exists():
                ready = True
                _say(f"{name}: booted in {now - begin:.1f} s")
            if status is None and (status := self._status()) is not None:
                end_by = now + _POWER_OFF_S  # whatever the command left running
            if now > end_by or (not ready and now > begin + boot_s):
                break
        status = self._status() if status is None else status
        took = time.monotonic() - begin
        if status is not None:
            if not ready:
                self._complain("the machine has no RDMA devices")
            _say(f"{name}: status {status} after {took:.1f} s")
            return status
        if time.monotonic() > deadline:
            self._complain(f"out of time after {took:.0f} s (--timeout-s)")
            return OUT_OF_TIME
        self._complain("the machine died" if ready else f"not booted after {took:.0f} s")
        return NO_VM if ready else None

    def _forward(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait a moment for output and pass it on; False once QEMU has ended."""
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], 0.05)[0]:
            return True
        output = os.read(process.stdout.fileno(), 65536)
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()
        return bool(output)

    def _status(self) -> int | None:
        """Return the exit status that the guest has left, once it is there as a whole line."""
        try:
            text = (self._job / "status").read_text()
        except FileNotFoundError:
            return None
        return int(text) if re.fullmatch(r"\d+\n", text, re.ASCII) else None

    def _complain(self, what: str) -> None:
        _say(f"{self._machine.accelerator}: {what}")
        for name in ("qemu", "console"):
            path = self._folder / name
            if path.exists() and (text := path.read_text(errors="replace").strip()):
                _say(f"{name} says:\n{text[-3000:]}")

    def _qemu(self) -> list[str]:
        emulated = self._machine.accelerator == "tcg"
        # Emulation does "rep movsb" by the byte, and walks five levels of page tables slowly.
        processor = "max,la57=off,erms=off,fsrm=off" if emulated else "host"
        # Without no_timer_check, the kernel panics when a busy machine makes it wait for its timer.
        options = [
            *("console=ttyS0", "quiet", "loglevel=4", "panic=-1", "mitigations=off", "nokaslr"),
            *("audit=0", "selinux=0", "apparmor=0", "random.trust_cpu=on", "tsc=reliable"),
            *("no_timer_check", "nowatchdog", "rcupdate.rcu_expedited=1", "cryptomgr.notests"),
            *(["clearcpuid=rep_good"] if emulated else []),
        ]
        return [
            *(_QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-M", "q35,vmport=off,smbus=off,sata=off,hpet=off,usb=off"),
            *("-accel", "tcg,thread=multi,tb-size=256" if emulated else "kvm", "-cpu", processor),
            *("-smp", str(self._machine.processors), "-m", str(self._machine.memory_mib)),
            *("-kernel", str(self._system.image), "-append", " ".join(options)),
            *("-initrd", str(self._folder / "initramfs"), "-serial", f"file:{self._console}"),
            *("-device", "virtio-serial-pci", "-chardev", "file,id=output,path=/dev/stdout"),
            *("-device", "virtserialport,chardev=output"),
            *_share("host", Path("/"), ",readonly=on"),
            *_share("job", self._job),
        ]


def _share(tag: str, folder: Path, more: str = "") -> list[str]:
    path = str(folder).replace(",", ",,")
    return [
        *("-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{more}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # what runs is ended, and files are removed
    sys.exit(main())
