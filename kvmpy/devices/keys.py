"""Keys of a US keyboard with 104 keys: names, scan codes in sets 1 to 3, and the text that they make.

Codes: IBM PS/2 Hardware Interface Technical Reference, keyboards; Microsoft Keyboard Scan Code Specification 1.3a.
"""

from __future__ import annotations

# Name, make code in set 2 (hex, with prefix), make code in set 3.
_TABLE = """
escape 76 08, f1 05 07, f2 06 0f, f3 04 17, f4 0c 1f, f5 03 27, f6 0b 2f, f7 83 37, f8 0a 3f, f9 01 47, f10 09 4f, f11 78 56, f12 07 5e,
grave 0e 0e, 1 16 16, 2 1e 1e, 3 26 26, 4 25 25, 5 2e 2e, 6 36 36, 7 3d 3d, 8 3e 3e, 9 46 46, 0 45 45,
minus 4e 4e, equal 55 55, backspace 66 66,
tab 0d 0d, q 15 15, w 1d 1d, e 24 24, r 2d 2d, t 2c 2c, y 35 35, u 3c 3c, i 43 43, o 44 44, p 4d 4d, bracketleft 54 54, bracketright 5b 5b,
backslash 5d 5c, capslock 58 14, a 1c 1c, s 1b 1b, d 23 23, f 2b 2b, g 34 34, h 33 33, j 3b 3b, k 42 42, l 4b 4b, semicolon 4c 4c,
apostrophe 52 52, enter 5a 5a, shift 12 12, z 1a 1a, x 22 22, c 21 21, v 2a 2a, b 32 32, n 31 31, m 3a 3a, comma 41 41, period 49 49,
slash 4a 4a, rightshift 59 59, less 61 13, ctrl 14 11, alt 11 19, space 29 29, rightalt e011 39, rightctrl e014 58, meta e01f 8b,
rightmeta e027 8c, menu e02f 8d, insert e070 67, home e06c 6e, pageup e07d 6f, delete e071 64, end e069 65, pagedown e07a 6d, up e075 63,
left e06b 61, down e072 60, right e074 6a, numlock 77 76, kpslash e04a 77, kpasterisk 7c 7e, kpminus 7b 84, kpplus 79 7c, kpenter e05a 79,
kpperiod 71 71, kp0 70 70, kp1 69 69, kp2 72 72, kp3 7a 7a, kp4 6b 6b, kp5 73 73, kp6 74 74, kp7 6c 6c, kp8 75 75, kp9 7d 7d,
scrolllock 7e 5f, printscreen e012e07c 57, pause e11477e1f014f077 62
"""

SET2: dict[str, bytes] = {}
SET3: dict[str, bytes] = {}
for _entry in _TABLE.split(","):
    _name, _set2, _set3 = _entry.split()
    SET2[_name], SET3[_name] = bytes.fromhex(_set2), bytes.fromhex(_set3)

BREAK = 0xF0

# What the controller makes of set 2 when it translates: set 1. 0x80 and up passes but for two.
_TRANSLATION = bytes.fromhex(
    "ff43413f3d3b3c58644442403e0f2959 65382a701d10025a66712c1f1e11035b"
    "672e2d201205045c68392f211413065d 693130232215075e6a7232241608095f"
    "6b332517180b0a606c34352627190c61 6d7328741a0d626e3a361c1b752b6376"
    "5556777879 7a0e7b7c4f7d4b477e7f6f 5253504c4d480145574e514a37494654"
)
TRANSLATED = _TRANSLATION + bytes((0x80, 0x81, 0x82, 0x41, 0x54, *range(0x85, 0x100)))


class Translator:
    """The controller's translation: F0 vanishes and sets bit 7 of the byte after it."""

    def __init__(self) -> None:
        self.breaking = False

    def take(self, byte: int) -> int | None:
        """The translated byte, None for the prefix."""
        if byte == BREAK:
            self.breaking = True
            return None
        translated = TRANSLATED[byte] | (0x80 if self.breaking else 0)
        self.breaking = False
        return translated


def _set1(set2: bytes) -> bytes:
    translator = Translator()
    return bytes(byte for byte in map(translator.take, set2) if byte is not None)


def _released(make: bytes) -> bytes:
    """Break sequence in set 2 of a make sequence: the codes in reverse order, each with F0 after its prefix."""
    if make[0] == 0xE1:
        return b""  # Pause sends make and break in one
    codes: list[bytes] = []
    prefix = b""
    for byte in make:
        if byte == 0xE0:
            prefix = b"\xe0"
        else:
            codes.insert(0, prefix + bytes((BREAK, byte)))
            prefix = b""
    return b"".join(codes)


SEQUENCES: dict[int, dict[str, tuple[bytes, bytes]]] = {
    1: {name: (_set1(make), _set1(_released(make))) for name, make in SET2.items()},
    2: {name: (make, _released(make)) for name, make in SET2.items()},
    3: {name: (make, bytes((BREAK,)) + make) for name, make in SET3.items()},
}
"""Make and break sequences by scan code set and key."""

_PLAIN = {
    "\b": "backspace", "\t": "tab", "\n": "enter", "\r": "enter", "\x1b": "escape", " ": "space", "`": "grave", "-": "minus", "=": "equal",
    "[": "bracketleft", "]": "bracketright", "\\": "backslash", ";": "semicolon", "'": "apostrophe",
    ",": "comma", ".": "period", "/": "slash",
    **{character: character for character in "abcdefghijklmnopqrstuvwxyz0123456789"},
}
_SHIFTED = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))

CHARACTERS: dict[str, tuple[str, bool]] = {
    **{character: (key, False) for character, key in _PLAIN.items()},
    **{character: (_PLAIN[below], True) for character, below in _SHIFTED.items()},
    **{character.upper(): (character, True) for character in "abcdefghijklmnopqrstuvwxyz"},
}
"""Key and Shift for each character that the keyboard can type."""
