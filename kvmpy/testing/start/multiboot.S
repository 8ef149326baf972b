# The multiboot 1 header: no flags, the rest from the ELF headers.
        .section .multiboot, "a"
        .balign 4
        .long   0x1BADB002, 0, -0x1BADB002
