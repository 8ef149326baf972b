/* The benchmark as a guest: PVH, 64-bit mode or 32-bit protected mode with paging. Command line: names of benchmarks (none: all), scale=N (1000 is the full work), repeat=N,
   "user" to run the compute ones at CPL 3. For each: "begin NAME", "stop", "end NAME CHECKSUM TSC-TICKS WORK". */
#include "guest.h"

#include "bench_guest.h"

u8 *arena = (u8 *)(32ul << 20);
#ifdef __x86_64__
u8 *code_page;
static u8 code_room[4096] __attribute__((aligned(4096)));
#else
const struct benchmark machine_benchmarks[1];
const unsigned machine_count = 0;
#endif

static u64 memory_above(u64 start) {
    const struct memory_range *range = (const struct memory_range *)(ulong)start_info->memory_map;
    for (u32 n = 0; n < start_info->memory_map_count; n++)
        if (range[n].type == 1 && range[n].start <= start && range[n].start + range[n].size > start)
            return range[n].start + range[n].size - start;
    return 0;
}

static ulong run_in_ring3(ulong at) {
    const struct call *call = (const struct call *)at;
    return call->run(call->work);
}

static ulong prepare_in_ring3(ulong at) {
    const struct benchmark *b = (const struct benchmark *)at;
    b->prepare();
    return 0;
}

static void measure(const struct benchmark *b, u32 scale, u32 repeat, bool user) {
    if ((u64)b->arena_mib << 20 > memory_above((ulong)arena)) {
        print("skip %s: %u MiB of memory wanted\n", b->name, b->arena_mib);
        return;
    }
    const struct call call = { b->run, scaled(b, scale) };
    if (b->prepare && user) in_user_mode(prepare_in_ring3, (ulong)b);
    else if (b->prepare) b->prepare();
    for (u32 n = 0; n < repeat; n++) {
        print("begin %s\n", b->name);
        const u64 start = rdtsc();
        const u64 sum = user ? in_user_mode(run_in_ring3, (ulong)&call) : call.run(call.work);
        const u64 ticks = rdtsc() - start;
        print("stop\n"); /* printing numbers takes its time, too */
        print("end %s %016llx %llu %u\n", b->name, (unsigned long long)sum, (unsigned long long)ticks, call.work);
    }
}

void guest_main(void) {
    traps_open();
    user_open();
#ifdef __x86_64__
    code_page = code_room;
    write_cr0((read_cr0() & ~(ulong)CR0_EM) | CR0_MP);
    write_cr4(read_cr4() | CR4_OSFXSR);
    pages_for_user();
#else
    paging_legacy();
#endif
    pic_open();
    apic_open();
    const u32 scale = (u32)option("scale", 1000), repeat = (u32)option("repeat", 1);
    const bool user = option_given("user");
    bool all = true;
    for (unsigned n = 0; n < compute_count; n++) all &= !option_given(compute[n].name);
    for (unsigned n = 0; n < machine_count; n++) all &= !option_given(machine_benchmarks[n].name);
    print("tsc %llu\n", (unsigned long long)tsc_per_ms());
    for (unsigned n = 0; n < compute_count; n++)
        if (all || option_given(compute[n].name)) measure(&compute[n], scale, repeat, user);
    for (unsigned n = 0; n < machine_count; n++)
        if (option_given(machine_benchmarks[n].name) || (all && machine_benchmarks[n].cpus == 1)) measure(&machine_benchmarks[n], scale, repeat, false);
    print("done\n");
    leave(0);
}
