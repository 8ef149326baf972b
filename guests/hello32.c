/* PVH or plain ELF32, in 32-bit protected mode without paging. */
#include "guest.h"

void guest_main(void) {
    u32 eip, esp;
    __asm__ volatile("call 1f; 1: pop %0; mov %%esp, %1" : "=r"(eip), "=r"(esp));
    print("Hello from 32-bit protected mode at EIP %x, ESP %x\n", eip, esp);
    check((read_cr0() & (CR0_PE | CR0_PG)) == CR0_PE, "protected mode without paging");
    check(start_info && start_info->magic == START_INFO_MAGIC, "start info");
    check(start_info->memory_map_count >= 2, "memory map");
    u32 low, high;
    __asm__("mul %3" : "=a"(low), "=d"(high) : "a"(0xDEADBEEFu), "r"(0x12345678u) : "cc");
    check_equal((u64)high << 32 | low, 0xFD5BDEE5621CA08ull, "32 by 32 bit product");
    all_good("hello32");
}
