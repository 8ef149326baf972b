"""The header of a qcow2 image (QEMU's docs/interop/qcow2.txt), parsed and checked."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from kvmpy.errors import ImageError
from kvmpy.host.images.hostfile import HostFile
from kvmpy.host.images.magic import QCOW2

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
INCOMPATIBLE_AT, AUTOCLEAR_AT, REFCOUNT_TABLE_AT = 72, 88, 48

# Incompatible features
DIRTY, CORRUPT, EXTERNAL_DATA, COMPRESSION, EXTENDED_L2 = 1, 2, 4, 8, 16
# Compatible features
LAZY_REFCOUNTS = 1
# Autoclear features
BITMAPS = 1

# Header extensions
BACKING_FORMAT, FEATURE_NAMES, BITMAP_DIRECTORY = 0xE2792ACA, 0x6803F857, 0x23852875

Bad = Callable[[str], ImageError]

MOST_L1 = 32 << 20
MOST_REFCOUNT_TABLE = 8 << 20
MOST_SNAPSHOTS = 65536
MOST_NAME = 1023
MOST_SIZE = 1 << 56


@dataclass
class Header:
    """The fields by their names in the specification; sizes and offsets in bytes."""

    version: int
    cluster_bits: int
    size: int
    l1_entries: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression: int = 0
    backing: str = ""
    backing_format: str = ""
    extensions: dict[int, bytes] = field(default_factory=dict)

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table, which is one cluster."""
        return self.cluster >> 3


def parse(file: HostFile) -> Header:
    """ImageError, one line, says what is wrong with it or not supported."""
    path = file.path

    def bad(why: str) -> ImageError:
        return ImageError(f"{path}: {why}")

    try:
        head = file.read_bytes(0, 4096)
    except OSError as error:
        raise bad(error.strerror or str(error)) from None
    if len(head) < _V2.size or head[:4] != QCOW2:
        raise bad("not a qcow2 image")
    (_, version, name_offset, name_size, bits, size, crypt, l1_entries, l1_offset, table, table_clusters, snapshots,
     snapshots_offset) = _V2.unpack_from(head)
    if version not in (2, 3):
        raise bad(f"qcow2 version {version}: versions 2 and 3 are known")
    if not 9 <= bits <= 21:
        raise bad(f"qcow2: clusters of 2^{bits} bytes: 2^9 to 2^21 are possible")
    header = Header(version, bits, size, l1_entries, l1_offset, table, table_clusters, snapshots, snapshots_offset)
    length = _V2.size
    if version == 3:
        if len(head) < _V2.size + _V3.size:
            raise bad("the qcow2 header is cut off")
        header.incompatible, header.compatible, header.autoclear, header.refcount_order, length = _V3.unpack_from(head, _V2.size)
        if not 104 <= length <= header.cluster or length % 8:
            raise bad(f"qcow2: a header of {length} bytes")
        if length > 104 and len(head) > 104:
            header.compression = head[104]
    if crypt:
        raise bad("encrypted qcow2 images are not supported")
    if header.refcount_order > 6:
        raise bad(f"qcow2: refcounts of 2^{header.refcount_order} bits")
    header.extensions = _extensions(file, header, length, name_offset, bad)
    _check_features(header, bad)
    _check_sizes(file, header, bad)
    if name_offset:
        if name_size > MOST_NAME or name_offset + name_size > header.cluster:
            raise bad("qcow2: the backing file's name lies outside the first cluster")
        name = file.read_bytes(name_offset, name_size)
        if len(name) < name_size or b"\0" in name:
            raise bad("qcow2: the backing file's name is damaged")
        header.backing = name.decode("utf-8", "surrogateescape")
        header.backing_format = header.extensions.get(BACKING_FORMAT, b"").decode("ascii", "replace")
    return header


def _extensions(file: HostFile, header: Header, at: int, name_offset: int, bad: Bad) -> dict[int, bytes]:
    """Type to content of the header extensions, which lie between the header and the backing file's name."""
    found: dict[int, bytes] = {}
    end = min(name_offset or header.cluster, header.cluster)
    area = file.read_bytes(0, end)
    while at + 8 <= len(area):
        kind, length = struct.unpack_from(">II", area, at)
        if kind == 0:
            break
        if length > len(area) - at - 8:
            raise bad(f"qcow2: header extension {kind:#x} of {length} bytes does not fit")
        found[kind] = area[at + 8 : at + 8 + length]
        at += 8 + -(-length // 8) * 8
    return found


def _check_features(header: Header, bad: Bad) -> None:
    if header.incompatible & EXTENDED_L2:
        raise bad("qcow2 with extended L2 entries is not supported: convert with qemu-img convert -O qcow2")
    if header.incompatible & EXTERNAL_DATA:
        raise bad("qcow2 with an external data file is not supported: convert with qemu-img convert -O qcow2")
    unknown = header.incompatible & ~(DIRTY | CORRUPT | COMPRESSION)
    if unknown:
        bit = unknown.bit_length() - 1
        raise bad(f"qcow2: the image needs a feature that is not known: {_feature_name(header, bit)}")
    if header.compression > 1 or bool(header.compression) != bool(header.incompatible & COMPRESSION):
        raise bad(f"qcow2: compression type {header.compression} is not known")


def _feature_name(header: Header, bit: int) -> str:
    names = header.extensions.get(FEATURE_NAMES, b"")
    for at in range(0, len(names) - 47, 48):
        if names[at] == 0 and names[at + 1] == bit:
            text = names[at + 2 : at + 48].rstrip(b"\0").decode("ascii", "replace")
            return "".join(letter if letter.isprintable() else "?" for letter in text)
    return f"bit {bit}"


def _check_sizes(file: HostFile, header: Header, bad: Bad) -> None:
    cluster = header.cluster
    if header.size > MOST_SIZE:
        raise bad(f"qcow2: a disk of {header.size} bytes")
    if header.size == 0 or header.size % 512:
        raise bad(f"qcow2: a disk of {header.size} bytes: a multiple of 512 is wanted")
    covered = cluster * header.l2_entries
    if header.l1_entries * 8 > MOST_L1:
        raise bad(f"qcow2: an L1 table of {header.l1_entries} entries is too large")
    if header.l1_entries < -(-header.size // covered):
        raise bad(f"qcow2: an L1 table of {header.l1_entries} entries is too small for the disk")
    if header.l1_offset % cluster or not cluster <= header.l1_offset or header.l1_offset + header.l1_entries * 8 > file.size:
        raise bad("qcow2: the L1 table lies outside the file")
    if header.refcount_table_clusters * cluster > MOST_REFCOUNT_TABLE or not header.refcount_table_clusters:
        raise bad(f"qcow2: a refcount table of {header.refcount_table_clusters} clusters")
    start = header.refcount_table_offset
    if start % cluster or start < cluster or start + header.refcount_table_clusters * cluster > -(-file.size // cluster) * cluster:
        raise bad("qcow2: the refcount table lies outside the file")
    if header.snapshots > MOST_SNAPSHOTS:
        raise bad(f"qcow2: {header.snapshots} snapshots")
    if header.snapshots and (header.snapshots_offset % cluster or not cluster <= header.snapshots_offset < file.size):
        raise bad("qcow2: the snapshot table lies outside the file")


def build(header: Header) -> bytes:
    """The header's bytes, with its extensions and the backing file's name; they must fit into the first cluster."""
    name = header.backing.encode("utf-8", "surrogateescape")
    length = 72 if header.version == 2 else 112
    extensions = b""
    for kind, content in header.extensions.items():
        extensions += struct.pack(">II", kind, len(content)) + content + bytes(-len(content) % 8)
    extensions += bytes(8)
    name_offset = length + len(extensions) if name else 0
    head = _V2.pack(
        QCOW2, header.version, name_offset, len(name), header.cluster_bits, header.size, 0, header.l1_entries, header.l1_offset,
        header.refcount_table_offset, header.refcount_table_clusters, header.snapshots, header.snapshots_offset,
    )
    if header.version == 3:
        head += _V3.pack(header.incompatible, header.compatible, header.autoclear, header.refcount_order, length)
        head += bytes((header.compression,)) + bytes(7)
    return head + extensions + name
