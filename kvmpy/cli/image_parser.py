"""The arguments of kvmpy image."""

from __future__ import annotations

from typing import Any


def add_parser(commands: Any) -> None:
    """The subcommand and its own."""
    parser = commands.add_parser("image", help="disk images: info, check, create", description="Disk images, raw and qcow2.")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="format, size, backing files")
    check = actions.add_parser("check", help="compares a qcow2 image's refcounts with its tables; status 65 when it is damaged")
    for each in (info, check):
        each.add_argument("file", metavar="FILE")
        each.add_argument("--json", action="store_true", help="one JSON object on standard output")
    create = actions.add_parser("create", help="makes an empty image, or one over a backing file")
    create.add_argument("file", metavar="FILE")
    create.add_argument("size", nargs="?", metavar="SIZE", help="for instance 512M, 20G; by default the backing file's")
    create.add_argument("--format", choices=("qcow2", "raw"), default="qcow2", help="default qcow2")
    create.add_argument("--backing", metavar="FILE", help="where what the new image lacks is read; relative to FILE's directory")
    create.add_argument("--cluster-size", default="64K", metavar="SIZE", help="of qcow2: 512 to 2M (default 64K)")
