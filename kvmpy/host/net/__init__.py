"""Network ends: where a NIC's frames go. `user`, `tap`, `socket` and `hub`, any of them with a packet capture."""
