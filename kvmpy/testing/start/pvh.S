# The PVH note: XEN_ELFNOTE_PHYS32_ENTRY (18).
        .section .note.pvh, "a", @note
        .balign 4
        .long   4, 4, 18
        .asciz  "Xen"
        .long   _start
