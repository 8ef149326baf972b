"""Boot protocols: from an image file to guest memory and the state of the first vCPU."""

from kvmpy.boot.hardware import Hardware
from kvmpy.boot.image import Image, read_image
from kvmpy.boot.layout import Range, memory_map
from kvmpy.boot.loader import PROTOCOLS, identify, load, parse_boot, protocol_of
from kvmpy.boot.state import BootState, Segment, Table

__all__ = [
    "PROTOCOLS", "BootState", "Hardware", "Image", "Range", "Segment", "Table", "identify", "load", "memory_map", "parse_boot",
    "protocol_of", "read_image",
]
