"""Call stacks: `machine.backtrace()`."""
