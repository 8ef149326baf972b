/* Decoder and disassembler: any bytes in every mode. */
#include <errno.h>

#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t modes[] = {16, 32, 64};
    for (unsigned m = 0; m < 3; m++)
        for (size_t at = 0; at < size;) {
            uint32_t room = (uint32_t)(size - at), length = 0;
            uint8_t *bytes = malloc(room);
            memcpy(bytes, data + at, room);
            char *text = malloc(64);
            memset(text, 'x', 64);
            int line = kp_decode(bytes, room, modes[m], &length);
            int shown = kp_disassemble(bytes, room, modes[m], 0xfffffffffffffff0 + at, text, 64);
            if (line < 0) {
                CHECK(line == -EINVAL && shown < 0, "decoded %d, disassembled %d", line, shown);
                length = 1;
            } else {
                struct kp_insn_info info;
                CHECK(!kp_insn_info((uint32_t)line, &info), "line %d", line);
                CHECK(length >= 1 && length <= 15 && length <= room, "length %u of %u", length, room);
                CHECK(shown == (int)length, "decoded %u bytes, disassembled %d", length, shown);
                CHECK(memchr(text, 0, 64), "text without end");
                uint32_t again = 0; /* the bytes behind an instruction have no part in it, and none of its own can be missed */
                CHECK(kp_decode(bytes, length, modes[m], &again) == line && again == length, "%u bytes alone: %u", length, again);
                CHECK(length == 1 || kp_decode(bytes, length - 1, modes[m], &again) < 0, "%u bytes are enough of %u", again, length);
                char *small = malloc(3);
                kp_disassemble(bytes, room, modes[m], 0, small, 3);
                CHECK(memchr(small, 0, 3), "text without end in little room");
                free(small);
            }
            free(bytes);
            free(text);
            at += length;
        }
    return 0;
}
