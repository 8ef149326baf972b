# ATA disks for INT 13h, by PIO at the legacy ports: drives 80h and on, after those of the BIOS disk device.
#
# Found once, by IDENTIFY DEVICE; a drive has to know addresses of 48 bits. Loaded with the BIOS, 16-bit real mode.
#include "bios.inc"

        .code16
        .section .text

#define A_COUNT   2             /* command block, from the base port */
#define A_LOW     3
#define A_MID     4
#define A_HIGH    5
#define A_DEVICE  6
#define A_STATUS  7
#define A_CONTROL 0x206

#define BSY 0x80
#define DF  0x20
#define DRQ 0x08
#define ERR 0x01

#define IDENTIFY_DEVICE 0xEC
#define READ_EXT   0x24
#define WRITE_EXT  0x34
#define VERIFY_EXT 0x42

# Fills V_DRIVES and V_ATAS.
        .globl  init_atas
init_atas:
        pushw   %es
        movb    $0, V_ATAS
        movw    $V_DRIVES, %si          # where the next one goes
        subw    $512, %sp
        movw    %sp, %bp                # what IDENTIFY gives
        xorb    %bl, %bl                # position: bit 1 the channel, bit 0 the drive
1:      call    select
        movw    %di, %dx
        addw    $A_STATUS, %dx
        inb     (%dx), %al
        testb   %al, %al                # 0: this drive is not there. FF: no channel
        jz      3f
        cmpb    $0xFF, %al
        je      3f
        movw    %di, %dx                # no interrupts: all is polled
        addw    $A_CONTROL, %dx
        movb    $0x02, %al
        outb    %al, (%dx)
        call    wait
        jc      3f
        movw    %di, %dx
        addw    $A_STATUS, %dx
        movb    $IDENTIFY_DEVICE, %al
        outb    %al, (%dx)
        call    wait_data
        jc      3f                      # a CD-ROM refuses it
        movw    %di, %dx
        pushw   %ss
        popw    %es
        movw    %bp, %di
        movw    $256, %cx
        rep     insw
        testb   $0x04, 167(%bp)         # word 83: 48 bits
        jz      3f
        movl    200(%bp), %eax          # words 100-102: sectors
        movl    %eax, (%si)
        movw    204(%bp), %ax
        movw    %ax, 4(%si)
        movb    %bl, 6(%si)
        addw    $8, %si
        incb    V_ATAS
3:      incb    %bl
        cmpb    $4, %bl
        jb      1b
        addw    $512, %sp
        popw    %es
        ret

# BL = position. DI = base port; the drive is selected.
select: movw    $0x1F0, %di
        testb   $2, %bl
        jz      1f
        movw    $0x170, %di
1:      movb    %bl, %al
        andb    $1, %al
        shlb    $4, %al
        orb     $0xE0, %al              # LBA
        movw    %di, %dx
        addw    $A_DEVICE, %dx
        outb    %al, (%dx)
        ret

# Waits until the drive at DI is not busy; AL = status, CF when that does not come. Keeps all else but DX.
wait:   pushl   %ecx
        movl    $0x400000, %ecx
        movw    %di, %dx
        addw    $A_STATUS, %dx
1:      inb     (%dx), %al
        testb   $BSY, %al
        jz      2f                      # CF is clear
        decl    %ecx
        jnz     1b
        stc
2:      popl    %ecx
        ret

# The same, then CF unless it wants to move data.
wait_data:
        call    wait
        jc      2f
        testb   $ERR + DF, %al
        jnz     1f
        testb   $DRQ, %al
        jnz     2f                      # CF is clear
1:      stc
2:      ret

# AL = number of an ATA disk: V_TOTAL, V_CYLS, V_HEADS, V_SPT and V_KIND as the BIOS disk device tells its own.
        .globl  describe_ata
describe_ata:
        pushal
        movzbw  %al, %si
        shlw    $3, %si
        addw    $V_DRIVES, %si
        movl    (%si), %eax
        movl    %eax, V_TOTAL
        movzwl  4(%si), %edx
        movl    %edx, V_TOTAL + 4
        testl   %edx, %edx              # all that fits is asked for by 32 bits
        jz      1f
        movl    $-1, %eax
1:      movl    $16, %ebx               # heads: doubled until 1024 cylinders are enough
2:      movl    %ebx, %ecx
        imull   $63 * 1024, %ecx, %ecx
        cmpl    %ecx, %eax
        jbe     3f
        shll    $1, %ebx
        cmpl    $128, %ebx
        jbe     2b
        movl    $255, %ebx
3:      movb    %bl, V_HEADS
        movb    $63, V_SPT
        imull   $63, %ebx, %ecx
        xorl    %edx, %edx
        divl    %ecx
        testl   %edx, %edx              # a piece of a cylinder counts
        jz      4f
        incl    %eax
4:      cmpl    $1024, %eax
        jbe     5f
        movl    $1024, %eax
5:      movw    %ax, V_CYLS
        movb    $2, V_KIND
        popal
        ret

# As `transfer` of disk.S, for the disk V_ATA - 1: BL = command, EAX:ECX = sector, SI = count, EDI = address.
# Gives AH = status, V_DONE = sectors done.
        .globl  ata_transfer
ata_transfer:
        pushw   %es
        pushl   %ebp
        movw    $0, V_DONE
        movb    $0, V_SHORT
        testw   %si, %si
        jz      good
        movl    V_TOTAL, %edx           # sectors there are from the first one on
        movl    V_TOTAL + 4, %ebp
        subl    %ecx, %edx
        sbbl    %eax, %ebp
        jb      absent
        jnz     1f                      # more than 32 bits can count
        movzwl  %si, %esi
        cmpl    %esi, %edx
        jae     1f
        movb    $0x04, V_SHORT          # fewer than wanted: those are moved, and the call fails
        movw    %dx, %si
        testw   %si, %si
        jz      good
1:      cmpb    $3, %bl                 # verifying moves nothing
        je      2f
        movzwl  %si, %edx               # the buffer has to lie
        shll    $9, %edx
        addl    %edi, %edx
        jc      beyond
        cmpl    $0x10FFF0, %edx         # in what real mode reaches
        ja      beyond
2:      pushl   %edi
        pushl   %eax
        movb    %bl, %bh                # BH = command, BL = position
        movzbw  V_ATA, %di
        decw    %di
        shlw    $3, %di
        movb    V_DRIVES + 6(%di), %bl
        call    select
        call    wait
        popl    %ebp                    # EBP:ECX = sector, DI = base port
        jc      late
        pushw   %bx
        movw    %si, %ax                # the high halves first
        movb    %ah, %al
        movb    $A_COUNT, %bl
        call    put
        movl    %ecx, %eax
        shrl    $24, %eax
        call    put
        movl    %ebp, %eax
        call    put
        movl    %ebp, %eax
        shrl    $8, %eax
        call    put
        movw    %si, %ax
        movb    $A_COUNT, %bl
        call    put
        movl    %ecx, %eax
        call    put
        movl    %ecx, %eax
        shrl    $8, %eax
        call    put
        movl    %ecx, %eax
        shrl    $16, %eax
        call    put
        popw    %bx
        movb    $READ_EXT, %al
        cmpb    $1, %bh
        je      3f
        movb    $WRITE_EXT, %al
        cmpb    $2, %bh
        je      3f
        movb    $VERIFY_EXT, %al
3:      movw    %di, %dx
        addw    $A_STATUS, %dx
        outb    %al, (%dx)
        popl    %ebp                    # EBP = address
        cmpb    $3, %bh
        je      verified

4:      call    wait_data
        jc      failed
        movl    %ebp, %eax              # segment and offset
        movl    %eax, %edx
        andl    $0xF, %edx
        shrl    $4, %eax
        cmpl    $0xFFFF, %eax
        jbe     5f
        movl    %ebp, %edx
        subl    $0xFFFF0, %edx
        movl    $0xFFFF, %eax
5:      movw    %ax, %es
        movw    $256, %cx
        cmpb    $2, %bh
        je      6f
        xchgw   %dx, %di
        rep     insw
        jmp     7f
6:      pushw   %si
        movw    %dx, %si
        movw    %di, %dx
        rep outsw %es:(%si), (%dx)
        popw    %si
7:      movw    %dx, %di
        addl    $512, %ebp
        incw    V_DONE
        cmpw    V_DONE, %si
        jne     4b
        call    wait                    # the last one is written, or not
        jc      failed
        testb   $ERR + DF, %al
        jz      good
        decw    V_DONE
failed: movw    %di, %dx
        incw    %dx
        inb     (%dx), %al              # why
        movb    $0x04, %ah              # sector not found
        testb   $0x10, %al
        jnz     out
        movb    $0x03, %ah              # write-protected
        cmpb    $0x44, %al
        je      out
        movb    $0x10, %ah              # cannot be read
        testb   $0x40, %al
        jnz     out
        movb    $0x20, %ah              # the controller failed
        jmp     out
verified:
        call    wait
        jc      failed
        testb   $ERR + DF, %al
        jnz     failed
        movw    %si, V_DONE
good:   movb    V_SHORT, %ah
        jmp     out
late:   popl    %edi
        movb    $0x80, %ah              # no answer
        jmp     out
beyond: movb    $0x09, %ah
        jmp     out
absent: movb    $0x04, %ah
out:    popl    %ebp
        popw    %es
        ret

# Writes AL to register BL, and counts BL up.
put:    movzbw  %bl, %dx
        addw    %di, %dx
        outb    %al, (%dx)
        incb    %bl
        ret
