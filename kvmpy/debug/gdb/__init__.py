"""A stub for GDB's remote protocol: `machine.debug(":1234")`, `kvmpy run --gdb :1234`."""
