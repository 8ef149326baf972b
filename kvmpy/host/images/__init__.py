"""Disk images: what is behind a disk device (kvmpy.devices.blockend.BlockEnd). docs/disks.md tells the design."""

from kvmpy.host.images.image import Image
from kvmpy.host.images.opening import is_qcow2, open_image
from kvmpy.host.images.qcow2_create import create_qcow2
from kvmpy.host.images.raw import create_raw
from kvmpy.host.images.spec import DiskSpec, parse_disk

__all__ = ["DiskSpec", "Image", "create_qcow2", "create_raw", "is_qcow2", "open_image", "parse_disk"]
