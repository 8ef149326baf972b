"""What a running Linux kernel knows, read out of its memory: `machine.linux`. Nothing in the guest helps, nothing there is changed."""
