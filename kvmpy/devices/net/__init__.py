"""NICs: virtio-net, e1000 (82540EM) and NE2000 (ISA and PCI). Each gets a NetEnd and a MAC address."""
