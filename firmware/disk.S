# INT 13h on the BIOS disk device (docs/firmware.md) and on ATA: drives 00-01 are floppies, 80 and on fixed disks.
#
# The device takes a sector number, a count and a physical address, and has done it all when the command port was written.
# ATA disks, which follow its own, are in ata.S.
#include "bios.inc"

        .code16
        .section .text

#define IDENTIFY 4
#define READ     1
#define WRITE    2
#define VERIFY   3

        .globl  init_disks
init_disks:
        call    init_atas
        movb    V_ATAS, %al
        movb    %al, B_HDISKS
        movw    $DISK + D_FLOPPIES, %dx
        inb     (%dx), %al
        cmpb    $2, %al
        ja      1f                      # FF: no device
        movb    %al, %bl
        incw    %dx
        inb     (%dx), %al
        addb    %al, B_HDISKS
        testb   %bl, %bl
        jz      1f
        decb    %bl                     # equipment: bit 0 there are floppies, 7-6 how many more
        shlb    $6, %bl
        orb     $1, %bl
        orb     %bl, B_EQUIP
1:      ret

        .globl  int13
int13:  ENTER
        cmpb    $0x18, %ah
        ja      2f
        movzbw  %ah, %si
        shlw    $1, %si
        jmp     *%cs:calls(%si)
2:      cmpb    $0x41, %ah
        jb      bad
        cmpb    $0x48, %ah
        ja      bad
        movzbw  %ah, %si
        shlw    $1, %si
        jmp     *%cs:extended - 0x82(%si)

calls:  .short  reset, last, read, write, verify, bad, bad, bad, parameters, reset, bad, bad, seek, reset, bad, bad
        .short  ready, reset, bad, bad, reset, kind, change, bad, media
extended:
        .short  installed, x_read, x_write, x_verify, bad, bad, x_seek, x_parameters

bad:    movb    $0x01, %ah              # invalid function

# Every call ends here: AH = status.
finish: movb    %ah, F_AH(%bp)
        testb   $0x80, F_DL(%bp)
        jnz     1f
        movb    %ah, B_DSTATUS
        jmp     2f
1:      movb    %ah, B_HSTATUS
2:      andw    $~CF, F_FLAGS(%bp)
        testb   %ah, %ah
        jz      3f
        orw     $CF, F_FLAGS(%bp)
3:      LEAVE

good:   xorb    %ah, %ah
        jmp     finish

# 01: status of the last call, which stays what it is
last:   movb    B_DSTATUS, %ah
        testb   $0x80, F_DL(%bp)
        jz      finish
        movb    B_HSTATUS, %ah
        jmp     finish

# Selects drive DL and fills V_KIND to V_TOTAL. CF and AH = 01 when there is none; else AL = kind.
identify:
        pushl   %edx
        movb    $0, V_ATA
        testb   $0x80, %dl
        jz      1f
        movw    $DISK + D_DISKS, %dx
        inb     (%dx), %al
        incb    %al                     # FF, no device, becomes none
        jz      0f
        decb    %al
0:      movb    F_DL(%bp), %ah
        andb    $0x7F, %ah
        subb    %al, %ah                # AH = number among the ATA disks
        jb      1f
        cmpb    V_ATAS, %ah
        jae     4f
        movb    %ah, %al
        call    describe_ata
        incb    %al
        movb    %al, V_ATA
        movb    V_KIND, %al
        jmp     3f
1:      movb    F_DL(%bp), %al
        movw    $DISK + D_DRIVE, %dx
        outb    %al, (%dx)
        movb    $IDENTIFY, %al
        movw    $DISK + D_COMMAND, %dx
        outb    %al, (%dx)
        movw    $DISK + D_KIND, %dx
        inb     (%dx), %al
        movb    %al, V_KIND
        decb    %al
        cmpb    $1, %al                 # 0 and FF become FF and FE
        ja      4f
        pushl   %eax
        movw    $DISK + D_CYLS, %dx     # cylinders, heads, sectors per track lie as in V_CYLS
        inl     (%dx), %eax
        movl    %eax, V_CYLS
        movw    $DISK + D_TOTAL, %dx
        inl     (%dx), %eax
        movl    %eax, V_TOTAL
        addw    $4, %dx
        inl     (%dx), %eax
        movl    %eax, V_TOTAL + 4
        popl    %eax
        incb    %al
3:      popl    %edx
        clc
        ret
4:      popl    %edx
        movb    $0x01, %ah
        stc
        ret

reset:
ready:
seek:   call    identify
        jc      finish
        jmp     good

# 02, 03, 04: AL sectors at cylinder CH + bits 7-6 of CL, sector bits 5-0 of CL, head DH; buffer ES:BX
verify: movb    $VERIFY, %bl
        jmp     1f
write:  movb    $WRITE, %bl
        jmp     1f
read:   movb    $READ, %bl
1:      call    identify
        jc      none
        movzbl  F_AL(%bp), %esi
        testw   %si, %si
        jz      bad
        pushw   %bx
        call    sector_number
        popw    %bx
        jc      3f
        movzwl  F_ES(%bp), %edi
        shll    $4, %edi
        movzwl  F_BX(%bp), %ecx
        addl    %ecx, %edi
        movl    %eax, %ecx
        xorl    %eax, %eax
        call    transfer
        movb    %al, F_AL(%bp)          # sectors done
        jmp     finish
3:      movb    $0, F_AL(%bp)
        movb    $0x04, %ah              # sector not found
        jmp     finish
none:   movb    $0, F_AL(%bp)
        movb    $0x80, %ah              # no answer
        jmp     finish

# EAX = number of the sector in the caller's CX and DH. CF when the drive has no such sector.
sector_number:
        movb    V_SPT, %al
        movzbl  %al, %ebx
        movb    V_HEADS, %al
        movzbl  %al, %ecx
        testl   %ecx, %ecx              # 0 stands for 256
        jnz     1f
        movw    $256, %cx
1:      movzbl  F_DH(%bp), %edx
        cmpl    %ecx, %edx
        jae     9f
        movzbl  F_CL(%bp), %eax
        shll    $2, %eax
        movb    F_CH(%bp), %al
        imull   %ecx, %eax
        addl    %edx, %eax
        imull   %ebx, %eax
        movzbl  F_CL(%bp), %edx
        andl    $0x3F, %edx
        jz      9f
        cmpl    %ebx, %edx
        ja      9f
        addl    %edx, %eax
        decl    %eax
        clc
        ret
9:      stc
        ret

# BL = command, EAX:ECX = sector (EAX the high half), SI = count, EDI = physical address.
# Gives AH = status, AL = sectors done.
transfer:
        cmpb    $0, V_ATA
        jne     1f
        movw    $DISK + D_LBAHIGH, %dx
        outl    %eax, (%dx)
        movl    %ecx, %eax
        movw    $DISK + D_LBA, %dx
        outl    %eax, (%dx)
        movl    %edi, %eax
        movw    $DISK + D_BUFFER, %dx
        outl    %eax, (%dx)
        movw    %si, %ax
        movw    $DISK + D_COUNT, %dx
        outw    %ax, (%dx)
        movb    %bl, %al
        movw    $DISK + D_COMMAND, %dx
        outb    %al, (%dx)
        inb     (%dx), %al
        movb    %al, %bl
        movw    $DISK + D_COUNT, %dx
        inw     (%dx), %ax
        movw    %ax, V_DONE
        movb    %bl, %ah
        ret
1:      call    ata_transfer
        movb    V_DONE, %al
        ret

# 08: CX and DH = largest cylinder, sector, head; DL = drives of this kind
parameters:
        call    identify
        jc      1f
        movw    V_CYLS, %ax
        decw    %ax
        movb    %al, F_CH(%bp)
        shlb    $6, %ah
        movb    V_SPT, %al
        orb     %ah, %al
        movb    %al, F_CL(%bp)
        movb    V_HEADS, %al
        decb    %al
        movb    %al, F_DH(%bp)
        movb    B_HDISKS, %al
        testb   $0x80, F_DL(%bp)
        jnz     2f
        movw    $ROM, F_ES(%bp)
        movw    $floppy_parameters, F_DI(%bp)
        call    floppy_type
        movb    %al, F_BL(%bp)
        movw    $DISK + D_FLOPPIES, %dx
        inb     (%dx), %al
        movb    %al, F_DL(%bp)
        movb    $0, F_AX(%bp)
        andw    $~CF, F_FLAGS(%bp)
        movb    $0, B_DSTATUS
        movb    $0, F_AH(%bp)
        LEAVE
2:      movb    %al, F_DL(%bp)
        movw    $0, F_AX(%bp)
        andw    $~CF, F_FLAGS(%bp)
        movb    $0, B_HSTATUS
        LEAVE
1:      movb    $0x07, %ah
        jmp     finish

# AL = CMOS type of the floppy drive: 1 360K, 2 1.2M, 3 720K, 4 1.44M, 6 2.88M
floppy_type:
        movb    V_SPT, %al
        movb    %al, %ah
        movb    $4, %al
        cmpb    $18, %ah
        je      1f
        movb    $6, %al
        cmpb    $36, %ah
        je      1f
        movb    $2, %al
        cmpb    $15, %ah
        je      1f
        movw    V_CYLS, %ax
        cmpw    $80, %ax
        movb    $3, %al
        je      1f
        movb    $1, %al
1:      ret

# 15: AH = kind (here 1 floppy, 3 fixed disk), not a status; CX:DX = sectors of a fixed disk
kind:   call    identify
        jc      1f
        cmpb    $1, %al
        je      2f
        movw    V_CYLS, %ax
        movzwl  %ax, %ecx
        movb    V_HEADS, %al
        movzbl  %al, %eax
        imull   %eax, %ecx
        movb    V_SPT, %al
        movzbl  %al, %eax
        imull   %eax, %ecx
        movw    %cx, F_DX(%bp)
        shrl    $16, %ecx
        movw    %cx, F_CX(%bp)
        movb    $3, %al
2:      movb    %al, F_AH(%bp)
        andw    $~CF, F_FLAGS(%bp)
        LEAVE
1:      movb    $0, F_AH(%bp)           # no drive is no error here
        andw    $~CF, F_FLAGS(%bp)
        LEAVE

# 16: the disk was not changed. 18: any geometry is as good as another.
change: call    identify
        jc      none
        jmp     good
media:  call    identify
        jc      none
        movw    $ROM, F_ES(%bp)
        movw    $floppy_parameters, F_DI(%bp)
        jmp     good

# 41: extensions 3.0; packet calls (1) and drive parameters (4)
installed:
        cmpw    $0x55AA, F_BX(%bp)
        jne     bad
        testb   $0x80, F_DL(%bp)
        jz      bad
        call    identify
        jc      finish
        movw    $0xAA55, F_BX(%bp)
        movw    $0x0005, F_CX(%bp)
        movb    $0x30, F_AH(%bp)
        andw    $~CF, F_FLAGS(%bp)
        LEAVE

# 42, 43, 44, 47: DS:SI = packet: size, 0, count, buffer (offset, segment), sector (64 bits), flat buffer when FFFF:FFFF
x_verify:
        movb    $VERIFY, %bl
        jmp     1f
x_write:
        movb    $WRITE, %bl
        jmp     1f
x_read: movb    $READ, %bl
1:      call    identify
        jc      finish
        movw    F_DS(%bp), %es
        movw    F_SI(%bp), %si
        cmpb    $16, %es:(%si)
        jb      bad
        movl    %es:4(%si), %edi
        cmpl    $-1, %edi
        jne     2f
        cmpb    $24, %es:(%si)
        jb      bad
        cmpl    $0, %es:20(%si)         # beyond 4 GiB
        jne     bad
        movl    %es:16(%si), %edi
        jmp     3f
2:      movzwl  %di, %eax
        shrl    $16, %edi
        shll    $4, %edi
        addl    %eax, %edi
3:      movl    %es:12(%si), %eax
        movl    %es:8(%si), %ecx
        pushw   %si
        movw    %es:2(%si), %si
        call    transfer
        popw    %si
        pushw   %ax
        movw    V_DONE, %ax
        movw    %ax, %es:2(%si)
        popw    %ax
        jmp     finish

x_seek: call    identify
        jc      finish
        jmp     good

# 48: DS:SI = result buffer, at least 26 bytes
x_parameters:
        call    identify
        jc      finish
        movw    F_DS(%bp), %es
        movw    F_SI(%bp), %di
        cmpw    $26, %es:(%di)
        jb      bad
        movw    $26, %es:(%di)
        movw    $0x0002, %es:2(%di)     # the geometry is valid, DMA boundaries do not matter
        xorl    %eax, %eax
        movw    V_CYLS, %ax
        movl    %eax, %es:4(%di)
        xorl    %eax, %eax
        movb    V_HEADS, %al
        movl    %eax, %es:8(%di)
        movb    V_SPT, %al
        movl    %eax, %es:12(%di)
        movl    V_TOTAL, %eax
        movl    %eax, %es:16(%di)
        movl    V_TOTAL + 4, %eax
        movl    %eax, %es:20(%di)
        movw    $512, %es:24(%di)
        jmp     good

# What INT 1Eh points to: a 1.44 MB drive
        .globl  floppy_parameters
floppy_parameters:
        .byte   0xAF, 0x02, 0x25, 0x02, 18, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08
