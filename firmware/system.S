# INT 8, 11h, 12h, 15h, 17h, 18h, 19h, 1Ah: time, memory, and the start of what is to be booted.
#include "bios.inc"

        .code16
        .section .text

# IRQ 0: 18.2 times a second
        .globl  irq_timer
irq_timer:
        pushw   %ds
        pushw   %ax
        pushw   $BDA
        popw    %ds
        pushl   %eax
        movl    B_TICKS, %eax
        incl    %eax
        cmpl    $0x1800B0, %eax         # a day
        jb      1f
        xorl    %eax, %eax
        incb    B_MIDNIGHT
1:      movl    %eax, B_TICKS
        popl    %eax
        int     $0x1C
        movb    $0x20, %al
        outb    %al, $PIC1
        popw    %ax
        popw    %ds
        iretw

# IRQ 8: nothing is asked of the RTC here; reading register C lets it interrupt again
        .globl  irq_rtc
irq_rtc:
        pushw   %ax
        movb    $0x0C, %al
        call    cmos_read
        movb    $0x20, %al
        outb    %al, $PIC2
        outb    %al, $PIC1
        popw    %ax
        iretw

# INT 11h: equipment. INT 12h: KiB of base memory.
        .globl  int11
int11:  pushw   %ds
        pushw   $BDA
        popw    %ds
        movw    B_EQUIP, %ax
        popw    %ds
        iretw
        .globl  int12
int12:  pushw   %ds
        pushw   $BDA
        popw    %ds
        movw    B_MEMORY, %ax
        popw    %ds
        iretw

# INT 17h: no printer
        .globl  int17
int17:  movb    $0x01, %ah
        iretw

        .globl  int15
int15:  ENTER
        movw    $calls15, %si
1:      cmpb    %cs:(%si), %ah
        je      2f
        addw    $3, %si
        cmpb    $0, %cs:(%si)
        jne     1b
        jmp     unsupported
2:      jmp     *%cs:1(%si)

        .macro  CALL15 number, handler
        .byte   \number
        .short  \handler
        .endm
calls15:
        CALL15  0x24, a20
        CALL15  0x4F, key_intercept
        CALL15  0x86, wait
        CALL15  0x87, move_block
        CALL15  0x88, extended_memory
        CALL15  0x90, done
        CALL15  0x91, done
        CALL15  0xC0, configuration
        CALL15  0xC1, extended_data
        CALL15  0xE8, memory_map
        .byte   0

unsupported:
        movb    $0x86, F_AH(%bp)
        orw     $CF, F_FLAGS(%bp)
        LEAVE

done:   movb    $0, F_AH(%bp)
carry_clear:
        andw    $~CF, F_FLAGS(%bp)
        LEAVE

# 4F: the scan code is taken as it is
key_intercept:
        orw     $CF, F_FLAGS(%bp)
        LEAVE

# 2400-2403: A20 off, on, state, what there is
a20:    cmpb    $3, %al
        ja      unsupported
        je      3f
        cmpb    $1, %al
        ja      2f
        inb     $PORT92, %al
        jb      1f
        orb     $2, %al
        andb    $0xFE, %al
        outb    %al, $PORT92
        jmp     done
1:      andb    $0xFC, %al
        outb    %al, $PORT92
        jmp     done
2:      inb     $PORT92, %al
        shrb    $1, %al
        andb    $1, %al
        movb    %al, F_AL(%bp)
        jmp     done
3:      movw    $0x0003, F_BX(%bp)      # keyboard controller and port 92h
        jmp     done

# 86: waits CX:DX microseconds, by channel 0 of the timer (1193182 Hz, counting down through all 16 bits)
wait:   movzwl  F_CX(%bp), %eax
        shll    $16, %eax
        movw    F_DX(%bp), %ax
        movl    $1193182, %ecx
        mull    %ecx
        movl    $1000000, %ecx
        cmpl    %ecx, %edx              # more than an hour: as long as 32 bits of ticks last
        jb      1f
        leal    -1(%ecx), %edx
1:      divl    %ecx
        movl    %eax, %ecx              # ticks to wait
        call    timer_count
        movw    %ax, %bx
        sti
1:      testl   %ecx, %ecx
        jz      done
        call    timer_count
        movw    %bx, %dx
        subw    %ax, %dx
        movw    %ax, %bx
        movzwl  %dx, %edx
        subl    %edx, %ecx
        ja      1b
        jmp     done

timer_count:
        pushfw
        cli
        xorb    %al, %al
        outb    %al, $PITCTL
        inb     $PIT0, %al
        movb    %al, %ah
        inb     $PIT0, %al
        xchgb   %al, %ah
        popfw
        ret

# 87: CX words, by a descriptor table of the caller at ES:SI: 10h source, 18h destination; 20h and 28h are ours to fill
move_block:
        cmpw    $0x8000, %cx
        ja      unsupported
        movw    F_SI(%bp), %si
        movzwl  %si, %ebx
        xorl    %eax, %eax
        movw    %es, %ax
        shll    $4, %eax
        addl    %eax, %ebx
        movl    $0x0000FFFF, %es:0x20(%si)      # code: base F0000h
        movl    $0x00009B0F, %es:0x24(%si)
        movl    $0x0000FFFF, %es:0x28(%si)      # data to return with: real mode's limits
        movl    $0x00009300, %es:0x2C(%si)
        pushl   %ebx
        pushw   $0x2F
        movw    %sp, %bx
        inb     $PORT92, %al
        movb    %al, %dl
        orb     $2, %al
        andb    $0xFE, %al
        outb    %al, $PORT92
        cli
        lgdtl   %ss:(%bx)
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpw   $0x20, $1f
1:      movw    $0x10, %ax
        movw    %ax, %ds
        movw    $0x18, %ax
        movw    %ax, %es
        xorw    %si, %si
        xorw    %di, %di
        rep movsw
        movw    $0x28, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movl    %cr0, %eax
        andb    $0xFE, %al
        movl    %eax, %cr0
        ljmpw   $ROM, $2f
2:      addw    $6, %sp
        movb    %dl, %al
        andb    $0xFE, %al
        outb    %al, $PORT92
        pushw   $BDA
        popw    %ds
        jmp     done

# 88: KiB from 1 MiB on, as far as 16 bits go
extended_memory:
        call    upper_memory
        movzwl  %ax, %eax
        movzwl  %dx, %edx
        shll    $6, %edx
        addl    %edx, %eax
        cmpl    $0xFFFF, %eax
        jb      1f
        movw    $0xFFFF, %ax
1:      movw    %ax, F_AX(%bp)
        jmp     carry_clear

# AX = KiB from 1 to 16 MiB, DX = 64 KiB blocks above. Without a firmware table: none. ES = TABLE.
upper_memory:
        pushw   $TABLE
        popw    %es
        xorw    %ax, %ax
        xorw    %dx, %dx
        call    has_table
        jne     1f
        movw    %es:T_BELOW16, %ax
        movw    %es:T_ABOVE16, %dx
1:      ret

# C0: ES:BX = configuration table. C1: ES = EBDA
configuration:
        movw    $ROM, F_ES(%bp)
        movw    $configuration_table, F_BX(%bp)
        jmp     done
configuration_table:
        .short  8
        .byte   0xFC, 0x00, 0x01, 0x70, 0x00, 0x00, 0x00, 0x00 # AT; second 8259, RTC, keyboard intercept
extended_data:
        movw    $EBDA, F_ES(%bp)
        jmp     done

# E801: memory in two runs. E820: the map, entry EBX to ES:DI. E881: E801 in 32 bits.
memory_map:
        cmpb    $0x20, %al
        je      3f
        cmpb    $0x01, %al
        je      1f
        cmpb    $0x81, %al
        jne     unsupported
        call    upper_memory
        movzwl  %ax, %eax
        movzwl  %dx, %edx
        movl    %eax, F_EAX(%bp)
        movl    %eax, F_ECX(%bp)
        movl    %edx, F_EBX(%bp)
        movl    %edx, F_EDX(%bp)
        jmp     carry_clear
1:      call    upper_memory
        movw    %ax, F_AX(%bp)
        movw    %ax, F_CX(%bp)
        movw    %dx, F_BX(%bp)
        movw    %dx, F_DX(%bp)
        jmp     carry_clear
3:      cmpl    $0x534D4150, F_EDX(%bp) # "SMAP"
        jne     unsupported
        cmpl    $20, F_ECX(%bp)
        jb      unsupported
        pushw   $TABLE
        popw    %es
        call    has_table
        jne     unsupported
        movzwl  %es:T_COUNT, %ecx
        movl    F_EBX(%bp), %eax
        cmpl    %ecx, %eax
        jae     unsupported
        leal    1(%eax), %edx
        cmpl    %ecx, %edx
        jb      4f
        xorl    %edx, %edx              # that was the last
4:      movl    %edx, F_EBX(%bp)
        imulw   $20, %ax, %si
        addw    %es:T_ENTRIES, %si
        pushw   %es
        popw    %ds
        movw    F_ES(%bp), %es
        movw    F_DI(%bp), %di
        movw    $10, %cx
        rep movsw
        movl    $0x534D4150, F_EAX(%bp)
        movl    $20, F_ECX(%bp)
        jmp     carry_clear

# INT 1Ah: 00, 01 ticks; 02-05 the RTC in BCD; B1 PCI (pci.S)
        .globl  int1a
int1a:  ENTER
        cmpb    $0xB1, %ah
        je      pci
        cmpb    $5, %ah
        ja      9f
        movzbw  %ah, %si
        shlw    $1, %si
        jmp     *%cs:clock(%si)
9:      movb    $0x86, F_AH(%bp)        # not supported
        orw     $CF, F_FLAGS(%bp)
        LEAVE

clock:  .short  get_ticks, set_ticks, get_time, set_time, get_date, set_date

get_ticks:
        movl    B_TICKS, %eax
        movw    %ax, F_DX(%bp)
        shrl    $16, %eax
        movw    %ax, F_CX(%bp)
        xorb    %al, %al
        xchgb   B_MIDNIGHT, %al
        movb    %al, F_AL(%bp)
        movb    $0, F_AH(%bp)
        jmp     carry_clear
set_ticks:
        movw    %cx, B_TICKS+2
        movw    %dx, B_TICKS
        movb    $0, B_MIDNIGHT
        jmp     done

# Waits until the RTC is not in the middle of an update; bounded.
settled:
        xorw    %cx, %cx
1:      movb    $0x0A, %al
        call    cmos_read
        testb   $0x80, %al
        loopnz  1b
        ret

get_time:
        call    settled
        movb    $0x04, %al
        call    cmos_read
        movb    %al, F_CH(%bp)
        movb    $0x02, %al
        call    cmos_read
        movb    %al, F_CL(%bp)
        movb    $0x00, %al
        call    cmos_read
        movb    %al, F_DH(%bp)
        movb    $0x0B, %al
        call    cmos_read
        andb    $1, %al                 # daylight saving
        movb    %al, F_DL(%bp)
        jmp     done
set_time:
        call    clock_stop
        movb    $0x04, %al
        movb    F_CH(%bp), %ah
        call    cmos_write
        movb    $0x02, %al
        movb    F_CL(%bp), %ah
        call    cmos_write
        movb    $0x00, %al
        movb    F_DH(%bp), %ah
        call    cmos_write
        jmp     clock_go
get_date:
        call    settled
        movb    $0x32, %al
        call    cmos_read
        movb    %al, F_CH(%bp)
        movb    $0x09, %al
        call    cmos_read
        movb    %al, F_CL(%bp)
        movb    $0x08, %al
        call    cmos_read
        movb    %al, F_DH(%bp)
        movb    $0x07, %al
        call    cmos_read
        movb    %al, F_DL(%bp)
        jmp     done
set_date:
        call    clock_stop
        movb    $0x32, %al
        movb    F_CH(%bp), %ah
        call    cmos_write
        movb    $0x09, %al
        movb    F_CL(%bp), %ah
        call    cmos_write
        movb    $0x08, %al
        movb    F_DH(%bp), %ah
        call    cmos_write
        movb    $0x07, %al
        movb    F_DL(%bp), %ah
        call    cmos_write
clock_go:
        movb    $0x0B, %al
        call    cmos_read
        andb    $0x7F, %al
        movb    %al, %ah
        movb    $0x0B, %al
        call    cmos_write
        jmp     done
clock_stop:
        movb    $0x0B, %al              # SET holds the update while the registers are written
        call    cmos_read
        orb     $0x80, %al
        movb    %al, %ah
        movb    $0x0B, %al
        jmp     cmos_write

# INT 18h: nothing could be booted
        .globl  int18
int18:  pushw   $BDA
        popw    %ds
        cld
        movw    $text_nothing, %si
        call    print
        jmp     stop

# INT 19h: starts what the firmware table names: far entry, sector in memory, or the first disk that boots.
        .globl  int19
int19:  cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ss
        movw    $0x7000, %sp            # below 7C00, where a sector may be waiting
        pushw   $BDA
        popw    %ds
        pushw   $TABLE
        popw    %es
        movb    $0xFF, %dl
        call    has_table
        jne     disks
        movb    %es:T_DRIVE, %dl
        movb    %es:T_METHOD, %al
        cmpb    $1, %al
        je      go
        cmpb    $2, %al
        je      far_entry
disks:  sti
        cmpb    $0xFF, %dl
        jne     1f
        xorb    %dl, %dl
        call    try
        movb    $0x80, %dl
        call    try
        movb    $0x81, %dl
        call    try
        int     $0x18
1:      call    try
        int     $0x18

# Reads the first sector of drive DL and starts it if it can be started; comes back if not.
try:    pushw   %dx
        xorb    %ah, %ah
        int     $0x13
        popw    %dx
        jc      3f
        xorw    %ax, %ax
        movw    %ax, %es
        movw    $0x7C00, %bx
        movw    $0x0201, %ax
        movw    $0x0001, %cx
        movb    $0, %dh
        pushw   %dx
        int     $0x13
        popw    %dx
        jc      2f
        cmpw    $0xAA55, %es:0x7DFE
        jne     3f
        jmp     go
2:      movw    $text_read, %si
        call    print
3:      ret

go:     xorl    %eax, %eax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7C00, %esp
        xorl    %ebx, %ebx
        xorl    %ecx, %ecx
        xorl    %esi, %esi
        xorl    %edi, %edi
        xorl    %ebp, %ebp
        movzbl  %dl, %edx
        sti
        ljmpw   $0, $0x7C00

# The table's registers; a far return takes CS:IP from the new stack.
far_entry:
        movw    %es:T_DATA, %ax
        movw    %es:T_CS, %bx
        movw    %es:T_IP, %cx
        movzwl  %es:T_SP, %edx
        movw    %ax, %ss
        movl    %edx, %esp
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        pushw   %bx
        pushw   %cx
        xorl    %eax, %eax
        xorl    %ebx, %ebx
        xorl    %ecx, %ecx
        xorl    %edx, %edx
        xorl    %esi, %esi
        xorl    %edi, %edi
        xorl    %ebp, %ebp
        lretw

text_nothing:   .asciz  "No bootable disk\r\n"
text_read:      .asciz  "Disk read error\r\n"
