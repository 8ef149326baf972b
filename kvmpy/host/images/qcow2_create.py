"""New qcow2 images."""

from __future__ import annotations

import os
import struct
from array import array

from kvmpy.errors import ImageError
from kvmpy.host.images.qcow2_header import BACKING_FORMAT, MOST_L1, MOST_NAME, MOST_REFCOUNT_TABLE, MOST_SIZE, Header, build
from kvmpy.host.images.qcow2_tables import packed


def create_qcow2(path: str, size: int, backing: str = "", backing_format: str = "", cluster_size: int = 65536) -> None:
    """Makes an empty image, or one over a backing file, whose name is kept as it is given. ImageError when `path` exists."""
    bits = cluster_size.bit_length() - 1
    if cluster_size != 1 << bits or not 9 <= bits <= 21:
        raise ImageError(f"{path}: clusters of {cluster_size} bytes: a power of two from 512 to 2097152 is wanted")
    if not 0 < size <= MOST_SIZE or size % 512:
        raise ImageError(f"{path}: a disk of {size} bytes: a multiple of 512 is wanted")
    if len(os.fsencode(backing)) > MOST_NAME:
        raise ImageError(f"{path}: the backing file's name is too long")
    l1_entries = -(-size // (cluster_size * cluster_size // 8))
    if l1_entries * 8 > MOST_L1:
        raise ImageError(f"{path}: the disk is too large for clusters of {cluster_size} bytes")
    l1 = -(-l1_entries * 8 // cluster_size)
    per_block = cluster_size // 2
    blocks = tables = 1
    while True:
        total = 1 + tables + blocks + l1
        need = -(-total // per_block)
        need_tables = -(-need * 8 // cluster_size)
        if (need, need_tables) == (blocks, tables):
            break
        blocks, tables = need, need_tables
    if tables * cluster_size > MOST_REFCOUNT_TABLE:
        raise ImageError(f"{path}: the disk is too large for clusters of {cluster_size} bytes")
    header = Header(3, bits, size, l1_entries, (1 + tables + blocks) * cluster_size, cluster_size, tables)
    header.backing = backing
    if backing_format:
        header.extensions[BACKING_FORMAT] = backing_format.encode()
    head = build(header)
    if len(head) > cluster_size:
        raise ImageError(f"{path}: the backing file's name does not fit into a cluster")
    counts = array("H", [1]) * total
    table = b"".join(struct.pack(">Q", (1 + tables + number) * cluster_size) for number in range(blocks))
    try:
        with open(path, "xb") as file:
            file.write(head)
            file.seek(cluster_size)
            file.write(table)
            file.seek((1 + tables) * cluster_size)
            file.write(packed(counts))
            file.truncate(total * cluster_size)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
