"""Checks whether everything dns needs is installed, and whether the GPUs can be used."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from caffe_dns import __version__, kernels
from caffe_dns.cli.findings import NOTE, OK, WRONG, Finding
from caffe_dns.device import nvjpeg
from caffe_dns.errors import first_line
from caffe_dns.profile.report import bytes_text

#: `torch>=2.5`, `onnx>=1.15; extra == "onnx"`
_REQUIREMENT = re.compile(r"([\w.-]+)>=([\d.]+)(?:.*extra == ['\"](\w+)['\"])?")
#: What each extra is for, except those for developers.
_EXTRAS = {
    "onnx": "dns export --output x.onnx",
    "safetensors": "dns export --output x.safetensors",
    "plot": "dns plot, dns sensitivity",
    "tensorboard": "dns train --tensorboard",
    "report": "dns report",
    "nvjpeg": "dns train --decode-on-gpu",
}
_DRIVER = Path("/proc/driver/nvidia/version")


def examine_installation() -> Iterator[Finding]:
    """Versions, packages and the command itself."""
    yield Finding(
        OK,
        f"dns {__version__}, Python {platform.python_version()}, {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores",
    )
    yield from _packages()
    if shutil.which("dns") is None:
        yield Finding(
            NOTE,
            "the shell does not find the command dns",
            "write python -m caffe_dns, or put the folder that pip installs programs into on PATH",
        )


def _packages() -> Iterator[Finding]:
    missing: dict[str, list[str]] = {}
    found = []
    for requirement in _requirements():
        match = _REQUIREMENT.match(requirement)
        if match is None or match[3] not in (None, *_EXTRAS):
            continue
        name, least, extra = match[1], match[2], match[3]
        has = _version(name)
        if has is not None and _numbers(has) >= _numbers(least):
            found.append(f"{name} {has}")
        elif extra == "nvjpeg" and (not torch.cuda.is_available() or nvjpeg.is_there()):
            continue
        elif extra is not None:
            missing.setdefault(extra, []).append(name if has is None else f"{name}>={least}")
        else:
            what = "is not installed" if has is None else f"is {has}, older than {least}"
            yield Finding(WRONG, f"{name} {what}", f"pip install '{name}>={least}'")
    yield Finding(OK, ", ".join(found) or f"torch {torch.__version__}")
    for extra, names in missing.items():
        yield Finding(
            NOTE,
            f"{', '.join(names)} not installed, for {_EXTRAS[extra]}",
            f"pip install 'caffe-dns[{extra}]' if you want that",
        )


def _requirements() -> list[str]:
    """The package's requirements; none if it runs without being installed."""
    try:
        return requires("caffe-dns") or []
    except PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    """A package's version. OpenCV has packages of several names."""
    for each in (name, name.removesuffix("-headless")):
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])


def examine_gpus() -> Iterator[Finding]:
    """The GPUs, and whether they compute correctly."""
    count = torch.cuda.device_count()
    if count == 0:
        yield from _why_no_gpu()
        return
    for number in range(count):
        properties = torch.cuda.get_device_properties(number)
        title = f"GPU {number}: {properties.name}"
        try:
            with torch.cuda.device(number):
                free, total = torch.cuda.mem_get_info()
                values = torch.ones(64, 64, device="cuda")
                right = bool((values @ values == 64).all())
        except RuntimeError as error:
            others = ",".join(str(other) for other in range(count) if other != number)
            yield Finding(
                WRONG,
                f"{title} does not compute: {first_line(error)}",
                f"see what nvidia-smi says, or leave it out: CUDA_VISIBLE_DEVICES={others}",
            )
            continue
        memory = f"{bytes_text(free)} of {bytes_text(total)} are free"
        if not right:
            yield Finding(WRONG, f"{title} computes wrong numbers", "see what nvidia-smi says")
        elif free < total / 2:
            yield Finding(NOTE, f"{title}, {memory}", "another program is using it: nvidia-smi")
        else:
            yield Finding(OK, f"{title}, {memory}")
    if not kernels.wanted(torch.device("cuda", 0)):
        yield Finding(
            NOTE,
            "Triton does not work, so training on a GPU is slower than it could be",
            "it needs the package triton and a C compiler",
        )


def _why_no_gpu() -> Iterator[Finding]:
    if _DRIVER.exists() and torch.version.cuda is None:
        yield Finding(
            NOTE,
            f"there is a GPU, but PyTorch {torch.__version__} is built for CPUs only",
            "install the build for your CUDA: https://pytorch.org/get-started",
        )
    elif _DRIVER.exists():
        yield Finding(
            NOTE,
            f"there is a GPU, but PyTorch for CUDA {torch.version.cuda} does not find it",
            "see what nvidia-smi says; the driver may be older than that CUDA, or "
            "CUDA_VISIBLE_DEVICES may hide it",
        )
    else:
        yield Finding(OK, f"no GPU; threads on the CPU: {torch.get_num_threads()}")
