# INT 10h: 80x25 and 40x25 text. Everything is written to text memory at B8000 and, for the page shown, to the terminal.
#include "bios.inc"

        .code16
        .section .text

        .globl  int10
int10:  ENTER
        cmpb    $0x1A, %ah
        je      display_code
        cmpb    $0x13, %ah
        ja      1f
        movzbw  %ah, %si
        shlw    $1, %si
        call    *%cs:services(%si)
1:      LEAVE

services:
        .short  set_mode, set_shape, set_cursor, get_cursor, nothing, set_page, scroll_up, scroll_down
        .short  read_cell, write_cell, write_char, nothing, nothing, nothing, teletype, get_mode
        .short  nothing, font_information, ega_information, write_string

nothing:
        ret

# Start-up: mode 3, without touching what the terminal shows.
        .globl  init_screen
init_screen:
        movb    $3, %al
        jmp     enter_mode

# 00: AL = mode, bit 7: keep the memory. Graphics modes do not exist; asking for one changes nothing.
set_mode:
        movb    %al, %ah
        andb    $0x7F, %al
        cmpb    $3, %al
        jbe     1f
        cmpb    $7, %al
        jne     9f
1:      testb   $0x80, %ah
        jnz     2f
        call    enter_mode
        call    serial_clear
        movb    $0x30, F_AL(%bp)
        ret
2:      movb    %al, B_MODE
9:      ret

enter_mode:
        pushw   %es
        movb    %al, B_MODE
        movw    $80, B_COLS
        movw    $4096, B_PAGESIZE
        cmpb    $1, %al
        ja      1f
        movw    $40, B_COLS
        movw    $2048, B_PAGESIZE
1:      movw    $0, B_START
        movb    $0, B_PAGE
        movw    $0x0607, B_SHAPE
        movw    $0x3D4, B_CRTC
        movb    $24, B_ROWS
        movw    $16, B_HEIGHT
        movb    $0x60, B_VIDEO
        pushw   %ds
        popw    %es
        movw    $B_CURSOR, %di
        xorw    %ax, %ax
        movw    $8, %cx
        rep stosw
        pushw   $TEXT
        popw    %es
        xorw    %di, %di
        movw    $0x0720, %ax
        movw    $0x4000, %cx
        rep stosw
        popw    %es
        ret

# 01: CX = first and last line of the cursor
set_shape:
        movw    %cx, B_SHAPE
        ret

# 02: BH = page, DX = row and column. The terminal follows when something is written.
set_cursor:
        movzbw  %bh, %si
        andw    $7, %si
        shlw    $1, %si
        movw    %dx, B_CURSOR(%si)
        ret

# 03: BH = page; gives DX and CX
get_cursor:
        movzbw  %bh, %si
        andw    $7, %si
        shlw    $1, %si
        movw    B_CURSOR(%si), %ax
        movw    %ax, F_DX(%bp)
        movw    B_SHAPE, %ax
        movw    %ax, F_CX(%bp)
        ret

# 05: AL = page to show; the terminal is redrawn
set_page:
        andb    $7, %al
        cmpb    B_PAGE, %al
        je      1f
        movb    %al, B_PAGE
        movzbw  %al, %ax
        imulw   B_PAGESIZE, %ax
        movw    %ax, B_START
        xorw    %cx, %cx
        movb    B_ROWS, %dh
        movb    B_COLS, %dl
        decb    %dl
        jmp     repaint
1:      ret

# 0F: AL = mode, AH = columns, BH = page
get_mode:
        movb    B_MODE, %al
        movb    B_COLS, %ah
        movw    %ax, F_AX(%bp)
        movb    B_PAGE, %al
        movb    %al, F_BH(%bp)
        ret

# 1A: display combination: a colour VGA
display_code:
        testb   %al, %al
        jnz     1f
        movb    $0x1A, F_AL(%bp)
        movw    $0x0008, F_BX(%bp)
1:      LEAVE

# 11/30: CX = lines per character, DL = rows less one. There is no font in memory: the pointer leads to blank cells.
font_information:
        cmpb    $0x30, %al
        jne     1f
        movw    $16, F_CX(%bp)
        movb    $24, F_DL(%bp)
        movw    $ROM, F_ES(%bp)
        movw    $blank, F_BP(%bp)
1:      ret

# 12/10: colour, 256 KiB
ega_information:
        cmpb    $0x10, %bl
        jne     1f
        movw    $0x0003, F_BX(%bp)
        movw    $0x0009, F_CX(%bp)
1:      ret

# ES:DI = the cell at row DH, column DL of page BH. Clobbers AX.
cell:   pushw   $TEXT
        popw    %es
        movzbw  %dh, %di
        imulw   B_COLS, %di
        movzbw  %dl, %ax
        addw    %ax, %di
        shlw    $1, %di
        movzbw  %bh, %ax
        andw    $7, %ax
        imulw   B_PAGESIZE, %ax
        addw    %ax, %di
        ret

# 08: AL = character, AH = attribute at the cursor of page BH
read_cell:
        call    cursor
        call    cell
        movw    %es:(%di), %ax
        movw    %ax, F_AX(%bp)
        ret

# DX = cursor of page BH
cursor: movzbw  %bh, %si
        andw    $7, %si
        shlw    $1, %si
        movw    B_CURSOR(%si), %dx
        ret

# Writes AL with attribute BL at DX of page BH, and to the terminal when that page is shown. Many programs write each
# character twice, with its colour and then by the teletype: the terminal need not see what it shows already.
put:    pushw   %es
        pushw   %di
        pushw   %ax
        call    cell
        popw    %ax
        pushw   %ax
        movb    %bl, %ah
        cmpw    %ax, %es:(%di)
        movw    %ax, %es:(%di)
        popw    %ax
        jne     2f
        cmpb    %dh, V_ROW
        jne     1f
        cmpb    %dl, V_COL
        jne     1f
2:      cmpb    B_PAGE, %bh
        jne     1f
        call    serial_cell
1:      popw    %di
        popw    %es
        ret

# 09: AL = character, BL = attribute, BH = page, CX = count; the cursor stays
write_cell:
        call    cursor
1:      jcxz    3f
        cmpb    B_ROWS, %dh
        ja      3f
        call    put
        decw    %cx
        incb    %dl
        cmpb    B_COLS, %dl
        jb      1b
        xorb    %dl, %dl
        incb    %dh
        jmp     1b
3:      ret

# 0A: the same with the attributes that are there
write_char:
        call    cursor
1:      jcxz    3f
        cmpb    B_ROWS, %dh
        ja      3f
        pushw   %ax
        call    cell
        popw    %ax
        movb    %es:1(%di), %bl
        call    put
        decw    %cx
        incb    %dl
        cmpb    B_COLS, %dl
        jb      1b
        xorb    %dl, %dl
        incb    %dh
        jmp     1b
3:      ret

# 0E: AL = character
teletype:
        xorb    %ah, %ah
        jmp     tty

# AL in teletype fashion, keeping all registers. For the BIOS's own texts.
        .globl  tty_plain
tty_plain:
        pushaw
        pushw   %es
        xorb    %ah, %ah
        call    tty
        popw    %es
        popaw
        ret

# AL on the page shown; AH = 0: keep the attribute that is there, 1: attribute BL. Clobbers all but BP and DS.
tty:    movb    B_PAGE, %bh
        pushw   %ax
        call    cursor
        popw    %ax
        cmpb    $7, %al
        je      tty_bell
        cmpb    $8, %al
        je      tty_back
        cmpb    $10, %al
        je      tty_line
        cmpb    $13, %al
        je      tty_return
        testb   %ah, %ah
        jnz     1f
        pushw   %ax
        call    cell
        popw    %ax
        movb    %es:1(%di), %bl
1:      call    put
        incb    %dl
        cmpb    B_COLS, %dl
        jb      tty_done
        xorb    %dl, %dl
        cmpb    %dh, V_ROW
        jne     tty_line
        movb    B_COLS, %al
        cmpb    %al, V_COL
        jb      tty_line
        movb    $13, %al                # the terminal wraps here too, however wide it is
        call    serial_put
        movb    %dl, V_COL
tty_line:
        call    serial_goto
        movb    $10, %al
        call    serial_put
        movb    $1, V_DIRTY
        cmpb    B_ROWS, %dh
        jb      1f
        pushw   %dx
        call    scroll_screen
        popw    %dx
        decb    %dh
1:      incb    %dh
        movb    %dh, V_ROW
        movb    %dl, V_COL
        jmp     tty_done
tty_return:
        call    serial_goto
        call    serial_put
        xorb    %dl, %dl
        movb    %dl, V_COL
        jmp     tty_done
tty_back:
        testb   %dl, %dl
        jz      tty_done
        cmpb    %dh, V_ROW
        jne     1f
        cmpb    %dl, V_COL
        jne     1f
        call    serial_put              # the terminal stands there: the plain character does it
        decb    V_COL
1:      decb    %dl
        jmp     tty_done
tty_bell:
        jmp     serial_put
tty_done:
        movb    B_PAGE, %bh
        movzbw  %bh, %si
        shlw    $1, %si
        movw    %dx, B_CURSOR(%si)
        ret

# 13: CX characters at ES:BP, from DX of page BH. AL bit 0: leave the cursor after them, bit 1: each has its attribute.
write_string:
        movb    %bh, %ah
        xchgb   B_PAGE, %ah             # the teletype writes to this page while it lasts
        pushw   %ax
        call    cursor
        movw    %dx, %ax
        popw    %dx
        pushw   %ax                     # old cursor
        pushw   %dx                     # DH = page shown, DL = mode
        movzbw  B_PAGE, %si
        andw    $7, %si
        shlw    $1, %si
        movw    F_DX(%bp), %ax
        movw    %ax, B_CURSOR(%si)
        movw    F_BP(%bp), %di
        movw    F_CX(%bp), %cx
        movb    %dl, %dh
        movb    F_BL(%bp), %bl
1:      jcxz    4f
        movw    F_ES(%bp), %es
        movb    %es:(%di), %al
        incw    %di
        testb   $2, %dh
        jz      2f
        movb    %es:(%di), %bl
        incw    %di
2:      movb    $1, %ah
        pushaw
        call    tty
        popaw
        decw    %cx
        jmp     1b
4:      popw    %dx
        popw    %ax
        movzbw  B_PAGE, %si
        andw    $7, %si
        shlw    $1, %si
        testb   $1, %dl
        jnz     5f
        movw    %ax, B_CURSOR(%si)
5:      movb    %dh, B_PAGE
        ret

# The page shown moves up by one line, in memory only: the terminal has scrolled by itself.
scroll_screen:
        movb    $1, V_LINES
        movb    $0x07, V_FILL
        movw    $0, V_TOP
        movb    B_COLS, %dl
        decb    %dl
        movb    B_ROWS, %dh
        movw    %dx, V_BOTTOM
        movb    $0, V_DOWN
        movb    B_PAGE, %bh
        jmp     scroll_memory

# 06, 07: AL = lines, 0 for all; BH = attribute of the new lines; CX = top left, DX = bottom right
scroll_up:
        movb    $0, V_DOWN
        jmp     1f
scroll_down:
        movb    $1, V_DOWN
1:      cmpb    B_ROWS, %dh
        jbe     2f
        movb    B_ROWS, %dh
2:      cmpb    B_COLS, %dl
        jb      3f
        movb    B_COLS, %dl
        decb    %dl
3:      cmpb    %dh, %ch
        ja      9f
        cmpb    %dl, %cl
        ja      9f
        movb    %dh, %ah
        subb    %ch, %ah
        incb    %ah                     # lines of the window
        testb   %al, %al
        jz      4f
        cmpb    %ah, %al
        jbe     5f
4:      movb    %ah, %al
5:      movb    %al, V_LINES
        movb    %bh, V_FILL
        movw    %cx, V_TOP
        movw    %dx, V_BOTTOM
        pushw   %ax
        pushw   %cx
        pushw   %dx
        movb    B_PAGE, %bh
        call    scroll_memory
        popw    %dx
        popw    %cx
        popw    %ax
        testw   %cx, %cx
        jnz     7f
        cmpb    B_ROWS, %dh
        jne     7f
        movb    B_COLS, %bl
        decb    %bl
        cmpb    %bl, %dl
        jne     7f
        cmpb    %ah, %al                # the whole screen is cleared: in the usual colour the terminal can do that itself
        jne     6f
        cmpb    $0x07, V_FILL
        je      serial_clear
        jmp     7f
6:      cmpb    $0, V_DOWN
        jne     7f
        cmpb    $0x07, V_FILL
        jne     7f
        xorb    %dl, %dl                # or moved up: line feeds on the last line do it
        call    serial_goto
        movzbw  V_LINES, %cx
        movb    $10, %al
8:      call    serial_put
        loop    8b
9:      ret
7:      jmp     repaint

# Sends the window CX-DX of the page shown to the terminal.
repaint:
        cmpw    $0, V_SERIAL
        je      3f
        movb    B_PAGE, %bh
        movw    %dx, V_BOTTOM
        movw    %cx, %dx
1:      call    cell
        movb    %es:(%di), %al
        movb    %es:1(%di), %bl
        call    serial_cell
        incb    %dl
        cmpb    V_BOTTOM, %dl
        jbe     1b
        movb    %cl, %dl
        incb    %dh
        cmpb    V_BOTTOM+1, %dh
        jbe     1b
3:      ret

# Moves the lines of the window in V_TOP-V_BOTTOM on page BH by V_LINES, up or down, and fills what comes free.
scroll_memory:
        movw    V_TOP, %dx
        movb    V_BOTTOM+1, %ah
        subb    %dh, %ah
        incb    %ah
        subb    V_LINES, %ah            # lines that are kept
        movzbw  %ah, %cx
        cmpb    $0, V_DOWN
        jne     2f
1:      jcxz    4f                      # up: from the top
        movb    %dh, %ah
        addb    V_LINES, %ah
        call    copy_line
        incb    %dh
        decw    %cx
        jmp     1b
2:      movb    V_BOTTOM+1, %dh
3:      jcxz    5f                      # down: from the bottom
        movb    %dh, %ah
        subb    V_LINES, %ah
        call    copy_line
        decb    %dh
        decw    %cx
        jmp     3b
5:      movb    V_TOP+1, %dh
4:      movzbw  V_LINES, %cx            # the free lines begin at DH
6:      jcxz    7f
        pushw   %cx
        movb    V_TOP, %dl
        call    cell
        call    width
        movb    V_FILL, %ah
        movb    $0x20, %al
        rep stosw
        popw    %cx
        incb    %dh
        decw    %cx
        jmp     6b
7:      ret

# CX = columns of the window
width:  movb    V_BOTTOM, %al
        subb    V_TOP, %al
        incb    %al
        movzbw  %al, %cx
        ret

# Copies line AH of the window to line DH.
copy_line:
        pushw   %cx
        pushw   %dx
        pushw   %ax
        movb    %ah, %dh
        movb    V_TOP, %dl
        call    cell
        movw    %di, %si
        popw    %ax
        popw    %dx
        pushw   %dx
        movb    V_TOP, %dl
        call    cell
        call    width
        pushw   %ds
        pushw   %es
        popw    %ds
        rep movsw
        popw    %ds
        popw    %dx
        popw    %cx
        ret

blank:  .skip   16
