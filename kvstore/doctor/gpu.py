"""Checks of GPUs: the driver, GPUDirect RDMA, and how far each is from its NIC."""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.doctor.findings import Finding, fail, ok, warn
from kvstore.doctor.host import Host
from kvstore.topology.pci import Distance

_CUDA = "libcuda.so.1"
_NEAR = (Distance.PIX, Distance.PXB)
_PATHS = {
    Distance.PHB: "through the host bridge",
    Distance.NODE: "through two host bridges of one NUMA node",
    Distance.SYS: "across sockets",
}


def driver(host: Host) -> Iterator[Finding]:
    """Driver of the GPUs, and what the CUDA driver says of them."""
    gpus = host.topology.gpus
    if not gpus:
        yield ok("no NVIDIA GPU")
        return
    for gpu in gpus:
        if gpu.driver != "nvidia":
            bound = f"bound to {gpu.driver}" if gpu.driver else "bound to no driver"
            fix = "install NVIDIA's driver, or bind the GPU to it (nvidia-smi must list it)"
            yield warn(f"{gpu.name} ({gpu.place.address}) is {bound}: CUDA does not see it", fix)
    bound_gpus = [gpu for gpu in gpus if gpu.driver == "nvidia"]
    if not bound_gpus:
        return
    answer = host.ask_library("cuda", _CUDA)
    if answer.error:
        yield fail(f"the CUDA driver does not work: {answer.error}", _cuda_fix(answer.error))
        return
    version, devices = answer.values.get("version"), answer.values.get("devices")
    if not isinstance(version, int) or not isinstance(devices, list):
        yield fail("the CUDA driver says nothing of its devices", "reinstall NVIDIA's driver")
        return
    words = f"CUDA {version // 1000}.{version % 1000 // 10}"
    if len(devices) < len(bound_gpus):
        yield warn(
            f"{words} sees {len(devices)} of {len(bound_gpus)} GPUs",
            "unset CUDA_VISIBLE_DEVICES; in a container --gpus all",
        )
    else:
        names = sorted({str(device.get("name")) for device in devices if isinstance(device, dict)})
        yield ok(f"{words} sees {len(devices)} GPUs: {', '.join(names)}")


def _cuda_fix(error: str) -> str:
    if "cannot open shared object" in error:
        return "install NVIDIA's driver; in a container --gpus all (nvidia-container-toolkit)"
    if "(803)" in error:  # CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        return "reboot, or reload the kernel modules: library and kernel module differ in version"
    if "(802)" in error:  # CUDA_ERROR_SYSTEM_NOT_READY
        return "start nvidia-fabricmanager: GPUs with NVSwitch need it"
    return "nvidia-smi shows more; reload the kernel modules or reboot"


def kernels(host: Host) -> Iterator[Finding]:
    """CuPy, which compiles the kernels of an engine in this environment."""
    if not host.topology.gpus:
        yield ok("no NVIDIA GPU")
    elif any((folder / "cupy").is_dir() for folder in host.site_packages):
        yield ok("CuPy is installed: checksums and paged pools by kernels on the GPU")
    else:
        yield warn(
            "CuPy is not installed: checksums of what GPUs get are verified on the host, which "
            "reads every byte",
            "pip install 'kvcache-store[gpu]' in the engine's environment",
        )


def direct(host: Host) -> Iterator[Finding]:
    """GPUDirect RDMA: nvidia_peermem, or dma-buf of the driver."""
    if not host.topology.gpus or not host.topology.nics:
        yield ok("GPUDirect RDMA needs a GPU and an RDMA NIC")
        return
    modules = host.sys / "module"
    if (modules / "nvidia_peermem").is_dir() or (modules / "nv_peer_mem").is_dir():
        yield ok("nvidia_peermem is loaded: NICs reach the memory of GPUs")
        return
    devices = host.ask_library("cuda", _CUDA).values.get("devices")
    supports = [d for d in devices if d.get("dma_buf")] if isinstance(devices, list) else []
    if supports:
        yield ok("the driver exports the memory of GPUs as dma-buf")
        return
    yield warn(
        "NICs cannot reach the memory of GPUs: nvidia_peermem is not loaded, and the driver offers "
        "no dma-buf; bytes pass through host memory",
        "modprobe nvidia_peermem, or NVIDIA's open kernel modules on Linux 5.12 or later",
    )


def distance(host: Host) -> Iterator[Finding]:
    """How far each GPU is from its nearest active NIC."""
    topology = host.topology
    for gpu in topology.gpus if topology.nics else ():
        nic = topology.nearest_nic(gpu)
        if nic is None:
            yield warn(f"{gpu.name} has no active NIC", "see the findings of ports")
            continue
        far = topology.distance(gpu, nic)
        if far in _NEAR:
            yield ok(f"{gpu.name} and {nic.name}: {far.name}")
        else:
            yield warn(
                f"{gpu.name} reaches its nearest NIC, {nic.name}, {_PATHS[far]} ({far.name})",
                "move one of the two below a common PCIe switch, or activate the port that is "
                "(nvidia-smi topo -m); in a VM the hypervisor hides the switches",
            )
