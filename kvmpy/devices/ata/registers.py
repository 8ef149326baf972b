"""Registers, bits and commands of ATA (ATA/ATAPI-7, volumes 1 and 2)."""

from __future__ import annotations

# Command block, offsets from 0x1F0 or 0x170.
DATA = 0
ERROR = FEATURES = 1
COUNT = 2
LBA_LOW, LBA_MID, LBA_HIGH = 3, 4, 5
DEVICE = 6
STATUS = COMMAND = 7
# Control block, 0x3F6 or 0x376.
CONTROL = ALTERNATE_STATUS = 8

# Status
BSY, DRDY, DF, DSC, DRQ, ERR = 0x80, 0x40, 0x20, 0x10, 0x08, 0x01

# Error
ICRC = 0x80
UNC = WP = 0x40
IDNF = 0x10
ABRT = 0x04
PASSED = 0x01  # after a reset: device 0 passed, device 1 passed or is not there

# Device
LBA_MODE, SELECT = 0x40, 0x10
OBSOLETE = 0xA0  # read as ones by old programs

# Device control
HOB, SRST, NIEN = 0x80, 0x04, 0x02

SECTOR = 512

# Commands of disks. Those of 48 bits are at the names with EXT.
DATA_SET_MANAGEMENT = 0x06
READ_SECTORS, READ_SECTORS_EXT, READ_DMA_EXT, READ_MULTIPLE_EXT = 0x20, 0x24, 0x25, 0x29
READ_NATIVE_MAX_EXT = 0x27
WRITE_SECTORS, WRITE_SECTORS_EXT, WRITE_DMA_EXT, WRITE_MULTIPLE_EXT = 0x30, 0x34, 0x35, 0x39
WRITE_DMA_FUA_EXT, WRITE_MULTIPLE_FUA_EXT = 0x3D, 0xCE
VERIFY, VERIFY_EXT = 0x40, 0x42
SEEK = 0x70
DIAGNOSTIC = 0x90
INITIALIZE_PARAMETERS = 0x91
SMART = 0xB0
READ_MULTIPLE, WRITE_MULTIPLE, SET_MULTIPLE = 0xC4, 0xC5, 0xC6
READ_DMA, WRITE_DMA = 0xC8, 0xCA
STANDBY_IMMEDIATE, IDLE_IMMEDIATE, STANDBY, IDLE = 0xE0, 0xE1, 0xE2, 0xE3
CHECK_POWER, SLEEP = 0xE5, 0xE6
FLUSH, FLUSH_EXT = 0xE7, 0xEA
IDENTIFY, SET_FEATURES, READ_NATIVE_MAX = 0xEC, 0xEF, 0xF8

# Commands of packet devices.
DEVICE_RESET, PACKET, IDENTIFY_PACKET = 0x08, 0xA0, 0xA1

# Interrupt reason, in the count register of a packet device
COD, IO = 0x01, 0x02
