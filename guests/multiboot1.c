/* A multiboot 1 kernel: ELF32, in 32-bit protected mode; checks what the loader handed over. */
#include "guest.h"

extern u32 multiboot_magic, multiboot_info;

struct info {
    u32 flags, memory_lower, memory_upper, boot_device, command_line, module_count, modules, symbols[4], map_length, map;
    u32 drives_length, drives, config, loader_name;
};

void guest_main(void) {
    const struct info *info = (const struct info *)multiboot_info;
    print("Hello from multiboot 1\n");
    check_equal(multiboot_magic, 0x2BADB002, "magic number in EAX");
    check(info->flags & 1, "memory sizes given");
    check(info->memory_lower >= 600 && info->memory_lower <= 640 && info->memory_upper >= 512, "memory sizes sound");
    check(info->flags & 0x40, "memory map given");
    u64 usable = 0;
    u32 at = info->map;
    while (at < info->map + info->map_length) {
        const u32 *entry = (const u32 *)at; /* its size does not count itself */
        u64 start, size;
        memcpy(&start, entry + 1, 8);
        memcpy(&size, entry + 3, 8);
        print("  %09llx %llx %u\n", (unsigned long long)start, (unsigned long long)size, entry[5]);
        if (entry[5] == 1) usable += size;
        at += entry[0] + 4;
    }
    check(usable >> 10 >= info->memory_upper, "memory map holds upper memory");
    if (info->flags & 4) print("command line \"%s\"\n", (const char *)info->command_line);
    if (info->flags & 0x200) print("loader %s\n", (const char *)info->loader_name);
    all_good("multiboot1");
}
