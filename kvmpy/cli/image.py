"""kvmpy image: what a disk image is, whether it is whole, and new ones."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from typing import Any

from kvmpy.cli import status
from kvmpy.errors import ConfigError, ImageError
from kvmpy.host.images import DiskSpec, Image, create_qcow2, create_raw, open_image
from kvmpy.host.images.hostfile import open_file
from kvmpy.host.images.opening import backing_path
from kvmpy.host.images.qcow2 import Qcow2Image
from kvmpy.host.images.qcow2_check import check as check_qcow2
from kvmpy.host.images.qcow2_header import CORRUPT, DIRTY, parse
from kvmpy.units import format_size, parse_size


def image(arguments: Namespace) -> int:
    """The subcommand; gives the exit status."""
    return {"info": _info, "check": _check, "create": _create}[arguments.action](arguments)


def _info(arguments: Namespace) -> int:
    opened = open_image(DiskSpec(arguments.file, readonly=True))
    try:
        data = _describe(opened)
    finally:
        opened.close()
    if arguments.json:
        print(json.dumps(data))
        return status.OK
    for key, value in data.items():
        text = f"{format_size(value)} ({value} bytes)" if key in ("size", "allocated") else value
        print(f"{key.replace('_', ' '):16} {text}")
    return status.OK


def _describe(opened: Image) -> dict[str, Any]:
    found = os.stat(opened.path)
    data: dict[str, Any] = {"file": opened.path, "format": opened.format, "size": opened.size, "allocated": found.st_blocks * 512}
    if isinstance(opened, Qcow2Image):
        header = opened.header
        data |= {"version": header.version, "cluster_size": header.cluster, "snapshots": header.snapshots}
        data["marks"] = ", ".join(name for bit, name in ((DIRTY, "dirty"), (CORRUPT, "corrupt")) if header.incompatible & bit) or "none"
        if opened.backing is not None:
            data |= {"backing": opened.backing.path, "backing_format": opened.backing.format}
    return data


def _check(arguments: Namespace) -> int:
    file = open_file(arguments.file, readonly=True)
    try:
        finding = check_qcow2(file, parse(file))
    finally:
        file.close()
    if arguments.json:
        print(json.dumps({
            "errors": finding.errors, "leaks": finding.leaks, "clusters": finding.clusters, "allocated": finding.allocated,
            "messages": finding.messages,
        }))
    else:
        for line in finding.messages:
            print(line)
        print(f"{finding.errors} errors, {finding.leaks} leaked clusters, {finding.allocated} clusters of the disk allocated")
    return status.BAD_IMAGE if finding.errors else status.OK


def _create(arguments: Namespace) -> int:
    size = None if arguments.size is None else -(-parse_size(arguments.size) // 512) * 512
    backing = arguments.backing
    if arguments.format == "raw":
        if backing or not size:
            raise ConfigError("a raw image has a size and no backing file")
        create_raw(arguments.file, size)
        return status.OK
    form = ""
    if backing:
        behind = open_image(DiskSpec(backing_path(arguments.file, backing), readonly=True))
        form, size = behind.format, size or behind.size
        behind.close()
    if not size:
        raise ConfigError("the new image's size is missing")
    if os.path.lexists(arguments.file):
        raise ImageError(f"{arguments.file}: exists already")
    create_qcow2(arguments.file, size, backing or "", form, parse_size(arguments.cluster_size))
    return status.OK
