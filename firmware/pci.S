# INT 1Ah AH = B1h: configuration space of PCI functions, by configuration mechanism 1 (PCI BIOS Specification 2.1 §2).
#include "bios.inc"

#define PCI_ADDRESS 0xCF8
#define PCI_DATA    0xCFC
#define PCI_ENABLE  0x80000000

#define UNSUPPORTED 0x81
#define BAD_VENDOR  0x83
#define NOT_FOUND   0x86
#define BAD_REGISTER 0x87

        .code16
        .section .text

# AL = function, as INT 1Ah has left it
        .globl  pci
pci:    movl    %eax, %esi
        movw    $PCI_ADDRESS, %dx
        movl    $PCI_ENABLE, %eax       # the register reads back only where there is a PCI host
        outl    %eax, %dx
        inl     %dx, %eax
        cmpl    $PCI_ENABLE, %eax
        movb    $UNSUPPORTED, %ah
        jne     fail
        movl    %esi, %eax
        movw    F_DX(%bp), %dx
        movw    F_SI(%bp), %si
        cmpb    $0x01, %al
        je      present
        cmpb    $0x02, %al
        je      find_device
        cmpb    $0x03, %al
        je      find_class
        subb    $0x08, %al
        cmpb    $5, %al
        jbe     register
        movb    $UNSUPPORTED, %ah
fail:   movb    %ah, F_AH(%bp)
        orw     $CF, F_FLAGS(%bp)
        LEAVE

# 01: EDX = "PCI ", AL = mechanisms (1), BX = version in BCD, CL = last bus
present:
        movl    $0x20494350, F_EDX(%bp)
        movb    $0x01, F_AL(%bp)
        movw    $0x0210, F_BX(%bp)
        movb    $0, F_CL(%bp)
good:   movb    $0, F_AH(%bp)
        andw    $~CF, F_FLAGS(%bp)
        LEAVE

# 02: device CX of vendor DX. 03: class ECX. The SI-th of them: BH = bus, BL = slot and function.
find_device:
        movb    $BAD_VENDOR, %ah
        cmpw    $0xFFFF, %dx
        je      fail
        shll    $16, %ecx
        movw    %dx, %cx
        xorl    %edi, %edi              # register 0 holds both
        jmp     find
find_class:
        shll    $8, %ecx
        movw    $8, %di                 # the class stands above the revision
find:   xorw    %bx, %bx
1:      pushw   %di
        xorw    %di, %di
        call    select
        popw    %di
        inl     %dx, %eax
        cmpw    $0xFFFF, %ax            # nobody there
        je      2f
        call    select
        inl     %dx, %eax
        testw   %di, %di
        jz      3f
        xorb    %al, %al
3:      cmpl    %ecx, %eax
        jne     2f
        subw    $1, %si
        jb      4f
2:      incb    %bl
        jnz     1b
        movb    $NOT_FOUND, %ah
        jmp     fail
4:      movw    %bx, F_BX(%bp)
        jmp     good

# 08-0A read, 0B-0D write a byte, word, double word: register DI of function BX; value in CL, CX, ECX
register:
        movb    $BAD_REGISTER, %ah
        cmpw    $0xFF, %di
        ja      fail
        movzbw  %al, %si
        movw    %di, %dx
        testb   %dl, %cs:alignments(%si)
        jnz     fail
        call    select
        shlw    $1, %si
        jmp     *%cs:registers(%si)
alignments:
        .byte   0, 1, 3, 0, 1, 3
registers:
        .short  read8, read16, read32, write8, write16, write32

read8:  inb     %dx, %al
        movb    %al, F_CL(%bp)
        jmp     good
read16: inw     %dx, %ax
        movw    %ax, F_CX(%bp)
        jmp     good
read32: inl     %dx, %eax
        movl    %eax, F_ECX(%bp)
        jmp     good
write8: movb    %cl, %al
        outb    %al, %dx
        jmp     good
write16:
        movw    %cx, %ax
        outw    %ax, %dx
        jmp     good
write32:
        movl    %ecx, %eax
        outl    %eax, %dx
        jmp     good

# DX = port of register DI of function BX, which CONFIG_ADDRESS now selects. Changes EAX.
select: movzwl  %bx, %eax
        shll    $8, %eax
        orl     $PCI_ENABLE, %eax
        movw    %di, %dx
        movb    %dl, %al
        andb    $0xFC, %al
        movw    $PCI_ADDRESS, %dx
        outl    %eax, %dx
        movw    %di, %dx
        andw    $3, %dx
        addw    $PCI_DATA, %dx
        ret
