# INT 9 and INT 16h: keys from the keyboard controller (scan code set 1) and from the serial console.
#include "bios.inc"

        .code16
        .section .text

# Controller self test, then interrupts and translation on, keyboard reset. Every wait is bounded.
        .globl  init_keyboard
init_keyboard:
        inb     $KBCTL, %al
        cmpb    $0xFF, %al              # no controller
        je      9f
        call    drain
        movb    $0xAA, %al
        call    command
        call    answer
        movb    $0x60, %al              # command byte: keyboard interrupt, system flag, mouse off, translation
        call    command
        movb    $0x65, %al
        call    data
        movb    $0xAE, %al
        call    command
        movb    $0xFF, %al
        call    data
        call    answer
        call    answer
        movb    $0xF4, %al
        call    data
        call    answer
        call    drain
9:      ret

command:
        call    room
        outb    %al, $KBCTL
        ret
data:   call    room
        outb    %al, $KBDATA
        ret
room:   pushw   %ax
        xorw    %cx, %cx
1:      inb     $KBCTL, %al
        testb   $2, %al
        loopnz  1b
        popw    %ax
        ret
answer: movw    $0x1000, %cx
1:      inb     $KBCTL, %al
        testb   $1, %al
        loopz   1b
        jz      2f
        inb     $KBDATA, %al
2:      ret
drain:  movw    $64, %cx
1:      inb     $KBCTL, %al
        testb   $1, %al
        jz      2f
        inb     $KBDATA, %al
        loop    1b
2:      ret

# Puts AX (scan code, character) into the buffer; a full buffer loses it.
        .globl  key_store
key_store:
        pushw   %bx
        pushw   %si
        movw    B_TAIL, %bx
        movw    %bx, %si
        addw    $2, %bx
        cmpw    B_KEYEND, %bx
        jb      1f
        movw    B_KEYBUF, %bx
1:      cmpw    B_HEAD, %bx
        stc
        je      2f
        movw    %ax, (%si)
        movw    %bx, B_TAIL
        clc
2:      popw    %si
        popw    %bx
        ret

# Stores the key that types character AL.
        .globl  key_from_ascii
key_from_ascii:
        pushw   %ax
        pushw   %bx
        cmpb    $0x80, %al
        jae     2f
        cmpb    $10, %al                # a terminal's line feed and delete are Enter and Backspace
        jne     1f
        movb    $13, %al
1:      cmpb    $0x7F, %al
        jne     3f
        movb    $8, %al
3:      movzbw  %al, %bx
        movb    %cs:ascii_scan(%bx), %ah
        call    key_store
2:      popw    %bx
        popw    %ax
        ret

# Scan codes of characters 00-7F on an American keyboard.
ascii_scan:
        .byte   0x03, 0x1E, 0x30, 0x2E, 0x20, 0x12, 0x21, 0x22, 0x0E, 0x0F, 0x1C, 0x25, 0x26, 0x1C, 0x31, 0x18
        .byte   0x19, 0x10, 0x13, 0x1F, 0x14, 0x16, 0x2F, 0x11, 0x2D, 0x15, 0x2C, 0x01, 0x2B, 0x1B, 0x07, 0x0C
        .byte   0x39, 0x02, 0x28, 0x04, 0x05, 0x06, 0x08, 0x28, 0x0A, 0x0B, 0x09, 0x0D, 0x33, 0x0C, 0x34, 0x35
        .byte   0x0B, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x27, 0x27, 0x33, 0x0D, 0x34, 0x35
        .byte   0x03, 0x1E, 0x30, 0x2E, 0x20, 0x12, 0x21, 0x22, 0x23, 0x17, 0x24, 0x25, 0x26, 0x32, 0x31, 0x18
        .byte   0x19, 0x10, 0x13, 0x1F, 0x14, 0x16, 0x2F, 0x11, 0x2D, 0x15, 0x2C, 0x1A, 0x2B, 0x1B, 0x07, 0x0C
        .byte   0x29, 0x1E, 0x30, 0x2E, 0x20, 0x12, 0x21, 0x22, 0x23, 0x17, 0x24, 0x25, 0x26, 0x32, 0x31, 0x18
        .byte   0x19, 0x10, 0x13, 0x1F, 0x14, 0x16, 0x2F, 0x11, 0x2D, 0x15, 0x2C, 0x1A, 0x2B, 0x1B, 0x29, 0x0E

# INT 16h
        .globl  int16
int16:  ENTER
        movb    %ah, %bl
        andb    $0xEF, %bl              # 10h-12h are 00h-02h for keyboards with 101 keys
        cmpb    $0x00, %bl
        je      key_read
        cmpb    $0x01, %bl
        je      key_check
        cmpb    $0x02, %bl
        je      key_shifts
        cmpb    $0x05, %ah
        je      key_push
        cmpb    $0x09, %ah
        jne     1f
        movb    $0x20, F_AL(%bp)        # functions 10h-12h are there
1:      LEAVE

# 00: waits. The processor halts between interrupts; the console's is on for as long.
key_read:
        pushw   %dx
        movb    B_PAGE, %bh             # the terminal's cursor shows where typing goes
        movzbw  %bh, %si
        shlw    $1, %si
        movw    B_CURSOR(%si), %dx
        cmpb    $0, V_DIRTY
        je      1f
        call    serial_goto
1:      popw    %dx
2:      cli
        call    serial_poll
        movw    B_HEAD, %si
        cmpw    B_TAIL, %si
        jne     4f
        call    serial_listen
        sti
        hlt
        cli
        call    serial_ignore
        jmp     2b
4:      movw    (%si), %ax
        addw    $2, %si
        cmpw    B_KEYEND, %si
        jb      5f
        movw    B_KEYBUF, %si
5:      movw    %si, B_HEAD
        call    plain_code
        movw    %ax, F_AX(%bp)
        LEAVE

# Functions 00h and 01h do not know the character E0h of the grey keys.
plain_code:
        testb   $0x10, F_AH(%bp)
        jnz     1f
        cmpb    $0xE0, %al
        jne     1f
        testb   %ah, %ah
        jz      1f
        xorb    %al, %al
1:      ret

# 01: ZF when no key waits
key_check:
        call    serial_poll
        movw    B_HEAD, %si
        cmpw    B_TAIL, %si
        je      1f
        movw    (%si), %ax
        call    plain_code
        movw    %ax, F_AX(%bp)
        andw    $~ZF, F_FLAGS(%bp)
        jmp     2f
1:      orw     $ZF, F_FLAGS(%bp)
2:      orw     $0x0200, F_FLAGS(%bp)   # a loop around this call needs interrupts to ever end
        LEAVE

key_shifts:
        movb    B_SHIFT, %al
        movb    %al, F_AL(%bp)
        testb   $0x10, F_AH(%bp)
        jz      1f
        movb    B_SHIFT2, %al
        movb    %al, F_AH(%bp)
1:      LEAVE

# 05: CX = key to put into the buffer
key_push:
        movw    %cx, %ax
        call    key_store
        movb    $0, F_AL(%bp)
        jnc     1f
        movb    $1, F_AL(%bp)
1:      LEAVE

# IRQ 1
        .globl  irq_keyboard
irq_keyboard:
        pushw   %ds
        pushal
        pushw   $BDA
        popw    %ds
        cld
        inb     $KBCTL, %al
        testb   $1, %al
        jz      9f
        inb     $KBDATA, %al
        stc                             # INT 15h/4Fh may change or swallow the code
        movb    $0x4F, %ah
        int     $0x15
        jnc     9f
        call    scan
9:      movb    $0x20, %al
        outb    %al, $PIC1
        popal
        popw    %ds
        iretw

# AL = a byte of scan code set 1
scan:   cmpb    $0, V_SKIP
        je      1f
        decb    V_SKIP                  # within Pause: E1 1D 45 E1 9D C5
        ret
1:      cmpb    $0xE0, %al
        jne     2f
        orb     $2, B_SHIFT3
        ret
2:      cmpb    $0xE1, %al
        jne     3f
        movb    $2, V_SKIP
        ret
3:      movb    B_SHIFT3, %cl
        andb    $~2, B_SHIFT3
        andb    $2, %cl                 # CL: after E0
        movb    %al, %ah
        andb    $0x7F, %al
        movb    $0x01, %bl              # modifiers: BL = its bit in B_SHIFT
        cmpb    $0x36, %al
        je      shift
        movb    $0x02, %bl
        cmpb    $0x2A, %al
        je      shift
        movb    $0x04, %bl
        cmpb    $0x1D, %al
        je      modifier
        movb    $0x08, %bl
        cmpb    $0x38, %al
        je      modifier
        movb    $0x10, %bl
        cmpb    $0x46, %al
        je      lock
        movb    $0x20, %bl
        cmpb    $0x45, %al
        je      lock
        movb    $0x40, %bl
        cmpb    $0x3A, %al
        je      lock
        testb   $0x80, %ah
        jnz     4f
        jmp     key
shift:  testb   %cl, %cl                # E0 2A and E0 36 are padding around grey keys
        jz      modifier
4:      ret
modifier:
        testb   $0x80, %ah
        jnz     5f
        orb     %bl, B_SHIFT
        ret
5:      notb    %bl
        andb    %bl, B_SHIFT
        ret
lock:   testb   $0x80, %ah              # the state turns when the key goes down
        jnz     4b
        xorb    %bl, B_SHIFT
        ret

# AL = scan code of a key pressed, CL = 2 after E0
key:    movb    %al, %ah
        cmpb    $0x53, %al              # Ctrl-Alt-Del
        jne     1f
        movb    B_SHIFT, %bl
        andb    $0x0C, %bl
        cmpb    $0x0C, %bl
        jne     1f
        movw    $0x1234, B_WARM
        movb    $0x0E, %al
        movw    $0xCF9, %dx
        outb    %al, (%dx)
        movb    $0xFE, %al
        outb    %al, $KBCTL
        ret
1:      cmpb    $0x39, %al
        jbe     letters
        cmpb    $0x44, %al
        jbe     function
        cmpb    $0x53, %al
        jbe     keypad
        cmpb    $0x57, %al              # F11, F12
        jb      2f
        cmpb    $0x58, %al
        ja      2f
        addb    $0x85 - 0x57, %ah
        movb    B_SHIFT, %bl
        xorb    %al, %al
        testb   $0x08, %bl
        jnz     3f
        testb   $0x04, %bl
        jnz     4f
        testb   $0x03, %bl
        jz      key_store
        addb    $2, %ah
        jmp     key_store
3:      addb    $6, %ah
        jmp     key_store
4:      addb    $4, %ah
        jmp     key_store
2:      ret

# F1-F10: 3B, with Shift 54, Ctrl 5E, Alt 68
function:
        movb    B_SHIFT, %bl
        xorb    %al, %al
        testb   $0x08, %bl
        jnz     1f
        testb   $0x04, %bl
        jnz     2f
        testb   $0x03, %bl
        jz      key_store
        addb    $0x54 - 0x3B, %ah
        jmp     key_store
1:      addb    $0x68 - 0x3B, %ah
        jmp     key_store
2:      addb    $0x5E - 0x3B, %ah
        jmp     key_store

keypad: movzbw  %al, %si
        movb    $0xE0, %al
        testb   %cl, %cl
        jnz     2f                      # a grey cursor key
        xorb    %al, %al
        movb    %cs:keypad_digits - 0x47(%si), %bh
        cmpb    $'-', %bh
        je      1f
        cmpb    $'+', %bh
        je      1f
        movb    B_SHIFT, %bl            # Num Lock or Shift, but not both
        testb   $0x03, %bl
        jz      3f
        xorb    $0x20, %bl
3:      testb   $0x20, %bl
        jz      2f
1:      movb    %bh, %al
        jmp     key_store
2:      testb   $0x04, B_SHIFT          # Ctrl
        jz      4f
        movb    %cs:keypad_ctrl - 0x47(%si), %ah
4:      jmp     key_store

keypad_digits:
        .ascii  "789-456+1230."
keypad_ctrl:
        .byte   0x77, 0x8D, 0x84, 0x8E, 0x73, 0x8F, 0x74, 0x90, 0x75, 0x91, 0x76, 0x92, 0x93

letters:
        movzbw  %al, %si
        cmpb    $0x1C, %al              # Enter and / of the keypad come after E0
        jne     1f
        testb   %cl, %cl
        jz      1f
        movb    $0xE0, %ah
1:      movw    %si, %bx
        addw    %bx, %si
        addw    %bx, %si                # three bytes each
        movb    B_SHIFT, %bl
        testb   $0x08, %bl
        jnz     alt
        testb   $0x04, %bl
        jnz     ctrl
        movb    %cs:keys(%si), %al
        movb    %bl, %bh
        andb    $0x03, %bh
        jz      2f
        movb    $1, %bh                 # BH: shifted
2:      cmpb    $'a', %al               # Caps Lock turns that around, for letters
        jb      3f
        cmpb    $'z', %al
        ja      3f
        testb   $0x40, %bl
        jz      3f
        xorb    $1, %bh
3:      testb   %bh, %bh
        jz      4f
        movb    %cs:keys+1(%si), %al
4:      jmp     key_store
ctrl:   movb    %cs:keys+2(%si), %al
        cmpb    $0xFE, %al              # no such combination
        je      6f
        jmp     key_store
6:      ret
alt:    xorb    %al, %al
        cmpb    $0x02, %ah              # 1 to = have codes of their own
        jb      key_store
        cmpb    $0x0D, %ah
        ja      key_store
        addb    $0x78 - 0x02, %ah
        jmp     key_store

# Scan codes 00-39: plain, Shift, Ctrl
        .macro  KEY plain, shift, ctrl=0xFE
        .byte   \plain, \shift, \ctrl
        .endm
keys:   KEY     0, 0
        KEY     0x1B, 0x1B, 0x1B
        KEY     '1', '!'
        KEY     '2', '@', 0x00
        KEY     '3', '#'
        KEY     '4', '$'
        KEY     '5', '%'
        KEY     '6', '^', 0x1E
        KEY     '7', '&'
        KEY     '8', '*'
        KEY     '9', '('
        KEY     '0', ')'
        KEY     '-', '_', 0x1F
        KEY     '=', '+'
        KEY     0x08, 0x08, 0x7F
        KEY     0x09, 0x00
        KEY     'q', 'Q', 0x11
        KEY     'w', 'W', 0x17
        KEY     'e', 'E', 0x05
        KEY     'r', 'R', 0x12
        KEY     't', 'T', 0x14
        KEY     'y', 'Y', 0x19
        KEY     'u', 'U', 0x15
        KEY     'i', 'I', 0x09
        KEY     'o', 'O', 0x0F
        KEY     'p', 'P', 0x10
        KEY     '[', '{', 0x1B
        KEY     ']', '}', 0x1D
        KEY     0x0D, 0x0D, 0x0A
        KEY     0, 0
        KEY     'a', 'A', 0x01
        KEY     's', 'S', 0x13
        KEY     'd', 'D', 0x04
        KEY     'f', 'F', 0x06
        KEY     'g', 'G', 0x07
        KEY     'h', 'H', 0x08
        KEY     'j', 'J', 0x0A
        KEY     'k', 'K', 0x0B
        KEY     'l', 'L', 0x0C
        KEY     0x3B, 0x3A
        KEY     0x27, 0x22
        KEY     0x60, 0x7E
        KEY     0, 0
        KEY     0x5C, 0x7C, 0x1C
        KEY     'z', 'Z', 0x1A
        KEY     'x', 'X', 0x18
        KEY     'c', 'C', 0x03
        KEY     'v', 'V', 0x16
        KEY     'b', 'B', 0x02
        KEY     'n', 'N', 0x0E
        KEY     'm', 'M', 0x0D
        KEY     0x2C, 0x3C
        KEY     '.', '>'
        KEY     '/', '?'
        KEY     0, 0
        KEY     '*', '*'
        KEY     0, 0
        KEY     ' ', ' ', ' '
