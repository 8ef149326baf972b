/* A multiboot 2 kernel: ELF32, in 32-bit protected mode; walks the loader's tags. */
#include "guest.h"

extern u32 multiboot_magic, multiboot_info;

void guest_main(void) {
    print("Hello from multiboot 2\n");
    check_equal(multiboot_magic, 0x36D76289, "magic number in EAX");
    check(!(multiboot_info & 7), "information on 8 bytes");
    const u32 total = *(const u32 *)multiboot_info;
    check(total >= 16 && total < 0x100000, "size sound");
    u32 at = multiboot_info + 8, seen_tags = 0;
    bool ended = false;
    while (at < multiboot_info + total) {
        const u32 *tag = (const u32 *)at;
        if (tag[0] < 32) seen_tags |= 1u << tag[0];
        if (tag[0] == 0) {
            ended = tag[1] == 8;
            break;
        }
        if (tag[0] == 1) print("command line \"%s\"\n", (const char *)(tag + 2));
        if (tag[0] == 2) print("loader %s\n", (const char *)(tag + 2));
        if (tag[0] == 6) {
            const u32 entry_size = tag[2];
            for (u32 entry = at + 16; entry < at + tag[1]; entry += entry_size) {
                const u32 *e = (const u32 *)entry;
                print("  %x%08x + %x%08x type %u\n", e[1], e[0], e[3], e[2], e[4]);
            }
        }
        at += (tag[1] + 7) & ~7u;
    }
    check(ended, "tags end with the end tag");
    check(seen_tags & 1 << 6, "memory map given as requested");
    all_good("multiboot2");
}
