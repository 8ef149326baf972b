# The serial console: COM1 shows what is on the text screen, and its input is taken as keys. INT 14h.
#include "bios.inc"

        .code16
        .section .text

# 115200 8N1 with FIFOs when a UART answers at COM1; finds the other ports.
        .globl  init_serial
init_serial:
        movw    $B_COM, %di
        movw    $com_ports, %si
        xorw    %bx, %bx                # number found
1:      movw    %cs:(%si), %dx
        testw   %dx, %dx
        jz      3f
        addw    $2, %si
        addw    $7, %dx                 # the scratch register remembers
        movb    $0x5A, %al
        outb    %al, (%dx)
        inb     (%dx), %al
        cmpb    $0x5A, %al
        jne     1b
        subw    $7, %dx
        movw    %dx, (%di)
        addw    $2, %di
        incw    %bx
        jmp     1b
3:      shlw    $9, %bx
        orw     %bx, B_EQUIP
        cmpw    $COM1, B_COM
        jne     4f
        movw    $COM1, V_SERIAL
        movb    $0x80, %al              # divisor 1
        movw    $COM1+3, %dx
        outb    %al, (%dx)
        movb    $1, %al
        movw    $COM1, %dx
        outb    %al, (%dx)
        xorb    %al, %al
        incw    %dx
        outb    %al, (%dx)
        movb    $0x03, %al
        movw    $COM1+3, %dx
        outb    %al, (%dx)
        movb    $0x01, %al              # FIFOs on, keeping what has come in already
        movw    $COM1+2, %dx
        outb    %al, (%dx)
        movb    $0x0B, %al              # DTR, RTS, and OUT2, which lets the interrupt through
        movw    $COM1+4, %dx
        outb    %al, (%dx)
        xorb    %al, %al
        movw    $COM1+1, %dx
        outb    %al, (%dx)
4:      movb    $0x07, V_ATTR
        ret

com_ports:
        .short  0x3F8, 0x2F8, 0x3E8, 0x2E8, 0

# Sends AL; waits a bounded time for room.
        .globl  serial_put
serial_put:
        pushw   %dx
        pushw   %cx
        pushw   %ax
        movw    V_SERIAL, %dx
        testw   %dx, %dx
        jz      9f
        addw    $5, %dx
        xorw    %cx, %cx
1:      inb     (%dx), %al
        testb   $0x20, %al
        jnz     2f
        loop    1b
        jmp     9f
2:      subw    $5, %dx
        popw    %ax
        pushw   %ax
        outb    %al, (%dx)
9:      popw    %ax
        popw    %cx
        popw    %dx
        ret

# CS:SI = text with a final zero, straight to the terminal.
serial_text:
        lodsb   %cs:(%si), %al
        testb   %al, %al
        jz      1f
        call    serial_put
        jmp     serial_text
1:      ret

# AL in decimal, 0-99.
serial_number:
        aam
        testb   %ah, %ah
        jz      1f
        xchgb   %ah, %al
        addb    $'0', %al
        call    serial_put
        xchgb   %ah, %al
1:      addb    $'0', %al
        jmp     serial_put

# Moves the terminal's cursor to row DH, column DL, if it is elsewhere.
        .globl  serial_goto
serial_goto:
        cmpb    %dh, V_ROW
        jne     1f
        cmpb    %dl, V_COL
        je      2f
1:      pushw   %ax
        pushw   %si
        movw    $text_csi, %si
        call    serial_text
        movb    %dh, %al
        incb    %al
        call    serial_number
        movb    $';', %al
        call    serial_put
        movb    %dl, %al
        incb    %al
        call    serial_number
        movb    $'H', %al
        call    serial_put
        movb    %dh, V_ROW
        movb    %dl, V_COL
        popw    %si
        popw    %ax
2:      ret

# Sets the terminal's colours to text attribute BL, if they differ.
serial_attribute:
        cmpb    %bl, V_ATTR
        je      3f
        pushw   %ax
        pushw   %bx
        pushw   %si
        movb    %bl, V_ATTR
        movw    $text_reset, %si
        call    serial_text
        cmpb    $0x07, %bl
        je      2f
        movw    $text_csi, %si
        call    serial_text
        movb    $'3', %al
        call    serial_put
        movb    %bl, %al
        call    1f
        movb    $';', %al
        call    serial_put
        movb    $'4', %al
        call    serial_put
        movb    %bl, %al
        shrb    $4, %al
        call    1f
        testb   $0x08, %bl
        jz      4f
        movb    $';', %al
        call    serial_put
        movb    $'1', %al
        call    serial_put
4:      movb    $'m', %al
        call    serial_put
2:      popw    %si
        popw    %bx
        popw    %ax
3:      ret
1:      andw    $7, %ax                 # VGA has blue in bit 0 and red in bit 2, the terminal the other way
        movw    %ax, %si
        movb    %cs:colours(%si), %al
        jmp     serial_put

colours:
        .ascii  "04261537"

# Character AL with attribute BL at row DH, column DL.
        .globl  serial_cell
serial_cell:
        cmpw    $0, V_SERIAL
        je      1f
        movb    $1, V_DIRTY
        call    serial_goto
        call    serial_attribute
        call    serial_glyph
        incb    V_COL                   # after the last column it is no column: terminals differ in what they do there
1:      ret

# AL of code page 437 as UTF-8.
serial_glyph:
        pushw   %ax
        pushw   %bx
        movzbw  %al, %bx
        movw    %bx, %ax
        cmpb    $0x20, %bl
        jb      1f
        cmpb    $0x7F, %bl
        jb      4f
        subw    $0x7F - 0x20, %bx
1:      shlw    $1, %bx
        movw    %cs:cp437(%bx), %ax
        cmpw    $0x80, %ax
        jb      4f
        cmpw    $0x800, %ax
        jae     2f
        movw    %ax, %bx                # two bytes
        shrw    $6, %ax
        orb     $0xC0, %al
        jmp     3f
2:      movw    %ax, %bx                # three
        shrw    $12, %ax
        orb     $0xE0, %al
        call    serial_put
        movw    %bx, %ax
        shrw    $6, %ax
        andb    $0x3F, %al
        orb     $0x80, %al
3:      call    serial_put
        movw    %bx, %ax
        andb    $0x3F, %al
        orb     $0x80, %al
4:      call    serial_put
        popw    %bx
        popw    %ax
        ret

# 00-1F, then 7F-FF
cp437:
        .short  0x0020, 0x263A, 0x263B, 0x2665, 0x2666, 0x2663, 0x2660, 0x2022, 0x25D8, 0x25CB, 0x25D9, 0x2642, 0x2640, 0x266A, 0x266B, 0x263C
        .short  0x25BA, 0x25C4, 0x2195, 0x203C, 0x00B6, 0x00A7, 0x25AC, 0x21A8, 0x2191, 0x2193, 0x2192, 0x2190, 0x221F, 0x2194, 0x25B2, 0x25BC
        .short  0x2302
        .short  0x00C7, 0x00FC, 0x00E9, 0x00E2, 0x00E4, 0x00E0, 0x00E5, 0x00E7, 0x00EA, 0x00EB, 0x00E8, 0x00EF, 0x00EE, 0x00EC, 0x00C4, 0x00C5
        .short  0x00C9, 0x00E6, 0x00C6, 0x00F4, 0x00F6, 0x00F2, 0x00FB, 0x00F9, 0x00FF, 0x00D6, 0x00DC, 0x00A2, 0x00A3, 0x00A5, 0x20A7, 0x0192
        .short  0x00E1, 0x00ED, 0x00F3, 0x00FA, 0x00F1, 0x00D1, 0x00AA, 0x00BA, 0x00BF, 0x2310, 0x00AC, 0x00BD, 0x00BC, 0x00A1, 0x00AB, 0x00BB
        .short  0x2591, 0x2592, 0x2593, 0x2502, 0x2524, 0x2561, 0x2562, 0x2556, 0x2555, 0x2563, 0x2551, 0x2557, 0x255D, 0x255C, 0x255B, 0x2510
        .short  0x2514, 0x2534, 0x252C, 0x251C, 0x2500, 0x253C, 0x255E, 0x255F, 0x255A, 0x2554, 0x2569, 0x2566, 0x2560, 0x2550, 0x256C, 0x2567
        .short  0x2568, 0x2564, 0x2565, 0x2559, 0x2558, 0x2552, 0x2553, 0x256B, 0x256A, 0x2518, 0x250C, 0x2588, 0x2584, 0x258C, 0x2590, 0x2580
        .short  0x03B1, 0x00DF, 0x0393, 0x03C0, 0x03A3, 0x03C3, 0x00B5, 0x03C4, 0x03A6, 0x0398, 0x03A9, 0x03B4, 0x221E, 0x03C6, 0x03B5, 0x2229
        .short  0x2261, 0x00B1, 0x2265, 0x2264, 0x2320, 0x2321, 0x00F7, 0x2248, 0x00B0, 0x2219, 0x00B7, 0x221A, 0x207F, 0x00B2, 0x25A0, 0x00A0

# An empty terminal; nothing is sent while it is empty, so that plain programs leave a plain log.
        .globl  serial_clear
serial_clear:
        pushw   %si
        pushw   %ax
        cmpb    $0, V_DIRTY
        je      1f
        movw    $text_clear, %si
        call    serial_text
        movb    $0x07, V_ATTR
        movw    $0, V_ROW
        movb    $0, V_DIRTY
1:      popw    %ax
        popw    %si
        ret

text_csi:       .asciz  "\033["
text_reset:     .asciz  "\033[0m"
text_clear:     .asciz  "\033[0m\033[2J\033[H"

# Takes what has come in on the console as keys.
        .globl  serial_poll
serial_poll:
        cmpw    $0, V_SERIAL
        je      9f
        pushw   %ax
        pushw   %bx
1:      call    serial_get
        jc      8f
        cmpb    $0x1B, %al
        jne     2f
        call    serial_get_soon         # ESC alone, or the start of a cursor key
        jc      3f
        cmpb    $'[', %al
        je      4f
        cmpb    $'O', %al
        je      4f
        pushw   %ax                     # ESC and a letter: two keys
        movw    $0x011B, %ax
        call    key_store
        popw    %ax
2:      call    key_from_ascii
        jmp     1b
3:      movw    $0x011B, %ax
        call    key_store
        jmp     8f
4:      call    serial_get_soon
        jc      8f
        movw    $cursor_keys, %bx
5:      cmpb    $0, %cs:(%bx)
        je      6f
        cmpb    %al, %cs:(%bx)
        je      7f
        addw    $2, %bx
        jmp     5b
7:      movb    %cs:1(%bx), %ah
        movb    $0xE0, %al
        call    key_store
        jmp     1b
6:      cmpb    $'1', %al               # ESC [ n ~
        jb      1b
        cmpb    $'6', %al
        ja      1b
        movzbw  %al, %bx
        call    serial_get_soon
        jc      8f
        cmpb    $'~', %al
        jne     1b
        movb    %cs:edit_keys - '1'(%bx), %ah
        movb    $0xE0, %al
        call    key_store
        jmp     1b
8:      popw    %bx
        popw    %ax
9:      ret

cursor_keys:
        .byte   'A', 0x48, 'B', 0x50, 'C', 0x4D, 'D', 0x4B, 'H', 0x47, 'F', 0x4F, 0
edit_keys:
        .byte   0x47, 0x52, 0x53, 0x4F, 0x49, 0x51     # Home Insert Delete End PageUp PageDown

# AL = a byte from the console; CF when there is none.
serial_get:
        pushw   %dx
        movw    V_SERIAL, %dx
        addw    $5, %dx
        inb     (%dx), %al
        cmpb    $0xFF, %al              # nothing there at all
        je      1f
        testb   $1, %al
        jz      1f
        subw    $5, %dx
        inb     (%dx), %al
        popw    %dx
        clc
        ret
1:      popw    %dx
        stc
        ret

# The same, but waits some 10 ms.
serial_get_soon:
        pushw   %cx
        movw    $2000, %cx
1:      call    serial_get
        jnc     2f
        loop    1b
        stc
2:      popw    %cx
        ret

# Interrupts from the console only while INT 16h waits for a key: a program that polls the port itself keeps its bytes.
        .globl  serial_listen
        .globl  serial_ignore
serial_listen:
        pushw   %ax
        movb    $1, %al
        jmp     1f
serial_ignore:
        pushw   %ax
        movb    $0, %al
1:      pushw   %dx
        movw    V_SERIAL, %dx
        testw   %dx, %dx
        jz      3f
        incw    %dx
        outb    %al, (%dx)
        movb    %al, %ah
        inb     $PIC1+1, %al
        orb     $0x10, %al
        testb   %ah, %ah
        jz      2f
        andb    $0xEF, %al
2:      outb    %al, $PIC1+1
3:      popw    %dx
        popw    %ax
        ret

        .globl  irq_serial
irq_serial:
        pushw   %ds
        pushal
        pushw   $BDA
        popw    %ds
        cld
        call    serial_poll
        movb    $0x20, %al
        outb    %al, $PIC1
        popal
        popw    %ds
        iretw

# INT 14h: 00 set, 01 send, 02 receive, 03 status; DX = 0-3.
        .globl  int14
int14:  ENTER
        cmpw    $4, %dx
        jae     9f
        movw    %dx, %si
        shlw    $1, %si
        movw    B_COM(%si), %dx
        testw   %dx, %dx
        jz      9f
        cmpb    $1, %ah
        jb      set
        je      send
        cmpb    $3, %ah
        jb      receive
        je      status
9:      movb    $0x80, F_AH(%bp)        # no such port: timed out
        LEAVE

set:    movb    %al, %cl                # bits 7-5: 110, 150, 300, 600, 1200, 2400, 4800, 9600 baud
        movzbw  %al, %bx
        shrw    $5, %bx
        shlw    $1, %bx
        movw    %cs:divisors(%bx), %bx
        addw    $3, %dx
        movb    $0x80, %al
        outb    %al, (%dx)
        subw    $3, %dx
        movb    %bl, %al
        outb    %al, (%dx)
        incw    %dx
        movb    %bh, %al
        outb    %al, (%dx)
        addw    $2, %dx
        movb    %cl, %al
        andb    $0x1F, %al
        outb    %al, (%dx)
        subw    $3, %dx
status: addw    $5, %dx
        inb     (%dx), %al
        movb    %al, F_AH(%bp)
        incw    %dx
        inb     (%dx), %al
        movb    %al, F_AL(%bp)
        LEAVE

send:   movb    %al, %bl
        addw    $5, %dx
        xorw    %cx, %cx
1:      inb     (%dx), %al
        testb   $0x20, %al
        jnz     2f
        loop    1b
        orb     $0x80, %al
        movb    %al, F_AH(%bp)
        LEAVE
2:      movb    %al, F_AH(%bp)
        subw    $5, %dx
        movb    %bl, %al
        outb    %al, (%dx)
        LEAVE

receive:
        addw    $5, %dx
        xorw    %cx, %cx
1:      inb     (%dx), %al
        testb   $1, %al
        jnz     2f
        loop    1b
        orb     $0x80, %al
        movb    %al, F_AH(%bp)
        LEAVE
2:      andb    $0x1E, %al
        movb    %al, F_AH(%bp)
        subw    $5, %dx
        inb     (%dx), %al
        movb    %al, F_AL(%bp)
        LEAVE

divisors:
        .short  1047, 768, 384, 192, 96, 48, 24, 12
