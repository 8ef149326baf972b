# Guests: build/guests/NAME.elf (32 and 64 bits) and NAME.bin (boot sectors); the hello guests are shipped as kvmpy/blobs/.
# guests/NAME.c or NAME.S is one guest; which list it stands in says how it is built.
# Guests of both widths: NAME64.elf and NAME32.elf.
GUESTS_BOTH      := traps paging smc user fpu
GUESTS_64        := hello64 echo timers smp ports
GUESTS_32        := hello32 segments tasks vm86
GUESTS_MULTIBOOT := multiboot1 multiboot2
GUESTS_SECTOR    := hello16 disk16 segments16
GUESTS_SHIPPED   := hello64.elf hello32.elf hello16.bin

BLOBS += $(GUESTS_SHIPPED:%=kvmpy/blobs/%)

GUEST_DIR   := build/guests

# Assembly that belongs to one guest.
$(GUEST_DIR)/smp.elf: $(GUEST_DIR)/64/smp_start.S.o
$(GUEST_DIR)/user64.elf: $(GUEST_DIR)/64/user_code.S.o
$(GUEST_DIR)/user32.elf: $(GUEST_DIR)/32/user_code.S.o

GUEST_CC     = $(CC) -std=gnu11 -O2 -g0 -Wall -Wextra -Werror -ffreestanding -nostdlib -static -no-pie -fno-pic -fno-stack-protector \
               -fno-asynchronous-unwind-tables -mno-red-zone -mgeneral-regs-only -fcf-protection=none -fno-tree-loop-distribute-patterns \
               -Iguests/lib -Iguests/bench -MMD -MP
GUEST_LD     = ld -z noexecstack -z max-page-size=4096 --no-warn-rwx-segments --build-id=none
GUEST_LIB    := $(patsubst guests/lib/%,%,$(sort $(filter-out guests/lib/start%.S guests/lib/multiboot.S,$(wildcard guests/lib/*.c guests/lib/*.S))))
GUEST_LIB_64 := $(GUEST_LIB:%=$(GUEST_DIR)/64/lib/%.o) $(GUEST_DIR)/64/lib/start64.S.o
GUEST_LIB_32 := $(GUEST_LIB:%=$(GUEST_DIR)/32/lib/%.o)

$(GUEST_DIR)/64/%.o: guests/%
	@mkdir -p $(@D)
	$(GUEST_CC) -m64 -march=x86-64 -mcmodel=small -c $< -o $@

$(GUEST_DIR)/32/%.o: guests/%
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 -march=i486 -c $< -o $@

$(GUEST_DIR)/32/lib/multiboot2.o: guests/lib/multiboot.S
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 -DMULTIBOOT2 -c $< -o $@

$(GUEST_DIR)/32/lib/multiboot1.o: guests/lib/multiboot.S
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 -c $< -o $@

$(GUESTS_64:%=$(GUEST_DIR)/%.elf): $(GUEST_DIR)/%.elf: $(GUEST_DIR)/64/%.c.o $(GUEST_LIB_64) guests/lib/guest64.ld
	$(GUEST_LD) -m elf_x86_64 -T guests/lib/guest64.ld $(filter %.o,$^) -o $@

$(GUESTS_32:%=$(GUEST_DIR)/%.elf): $(GUEST_DIR)/%.elf: $(GUEST_DIR)/32/%.c.o $(GUEST_LIB_32) $(GUEST_DIR)/32/lib/start32.S.o guests/lib/guest32.ld
	$(GUEST_LD) -m elf_i386 -T guests/lib/guest32.ld $(filter %.o,$^) -o $@

$(GUESTS_BOTH:%=$(GUEST_DIR)/%64.elf): $(GUEST_DIR)/%64.elf: $(GUEST_DIR)/64/%.c.o $(GUEST_LIB_64) guests/lib/guest64.ld
	$(GUEST_LD) -m elf_x86_64 -T guests/lib/guest64.ld $(filter %.o,$^) -o $@

$(GUESTS_BOTH:%=$(GUEST_DIR)/%32.elf): $(GUEST_DIR)/%32.elf: $(GUEST_DIR)/32/%.c.o $(GUEST_LIB_32) $(GUEST_DIR)/32/lib/start32.S.o guests/lib/guest32.ld
	$(GUEST_LD) -m elf_i386 -T guests/lib/guest32.ld $(filter %.o,$^) -o $@

$(GUESTS_MULTIBOOT:%=$(GUEST_DIR)/%.elf): $(GUEST_DIR)/%.elf: $(GUEST_DIR)/32/%.c.o $(GUEST_LIB_32) $(GUEST_DIR)/32/lib/%.o guests/lib/guest32.ld
	$(GUEST_LD) -m elf_i386 -T guests/lib/guest32.ld $(filter %.o,$^) -o $@

$(GUESTS_SECTOR:%=$(GUEST_DIR)/%.bin): $(GUEST_DIR)/%.bin: $(GUEST_DIR)/32/%.S.o
	ld -m elf_i386 --oformat binary -Ttext 0x7C00 -e _start $< -o $@

kvmpy/blobs/%: $(GUEST_DIR)/%
	@mkdir -p $(@D)
	cp $< $@

guests: $(GUESTS_BOTH:%=$(GUEST_DIR)/%64.elf) $(GUESTS_BOTH:%=$(GUEST_DIR)/%32.elf) $(GUESTS_64:%=$(GUEST_DIR)/%.elf) $(GUESTS_32:%=$(GUEST_DIR)/%.elf) $(GUESTS_MULTIBOOT:%=$(GUEST_DIR)/%.elf) $(GUESTS_SECTOR:%=$(GUEST_DIR)/%.bin)

-include $(wildcard $(GUEST_DIR)/64/*.d $(GUEST_DIR)/64/lib/*.d $(GUEST_DIR)/32/*.d $(GUEST_DIR)/32/lib/*.d)

# --- the benchmark: the same C in the guests build/guests/bench.elf and bench32.elf and in the host's programs build/bench/native and native32 ---
BENCH_INT    := mix sieve copies quicksort calls chase sha256 muldiv bytecode patched table
BENCH_FLOAT  := floats
BENCH_INT_32 := mix sieve quicksort calls sha256 muldiv bytecode table
BENCH_FLAGS   = -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -fno-pic -fcf-protection=none \
                -fno-asynchronous-unwind-tables -fno-tree-vectorize -fno-tree-loop-distribute-patterns -ffp-contract=off -mno-red-zone -MMD -MP
BENCH_C      := $(BENCH_INT:%=build/bench/%.o) $(BENCH_FLOAT:%=build/bench/%.o)
BENCH_C_32   := $(BENCH_INT_32:%=build/bench/32/%.o)
BENCH_GUEST  := $(patsubst guests/bench/%,$(GUEST_DIR)/64/bench/%.o,$(wildcard guests/bench/guest*.c guests/bench/*.S)) $(GUEST_DIR)/64/smp_start.S.o

$(BENCH_INT:%=build/bench/%.o): BENCH_FLAGS += -mgeneral-regs-only
build/bench/%.o: guests/bench/%.c
	@mkdir -p $(@D)
	$(CC) $(BENCH_FLAGS) -m64 -march=x86-64 -c $< -o $@

build/bench/32/%.o: guests/bench/%.c
	@mkdir -p $(@D)
	$(CC) $(BENCH_FLAGS) -m32 -march=i686 -mgeneral-regs-only -c $< -o $@

build/bench/native: guests/bench/native.c $(BENCH_C)
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror -no-pie -z noexecstack $^ -o $@

# Without a C library: the host may have none of 32 bits.
build/bench/native32: build/bench/32/native32.o $(BENCH_C_32)
	$(GUEST_LD) -m elf_i386 -static -e _start $^ -o $@

$(GUEST_DIR)/bench.elf: $(BENCH_GUEST) $(BENCH_C) $(GUEST_LIB_64) guests/lib/guest64.ld
	$(GUEST_LD) -m elf_x86_64 -T guests/lib/guest64.ld $(filter %.o,$^) -o $@

$(GUEST_DIR)/bench32.elf: $(GUEST_DIR)/32/bench/guest.c.o $(BENCH_C_32) $(GUEST_LIB_32) $(GUEST_DIR)/32/lib/start32.S.o guests/lib/guest32.ld
	$(GUEST_LD) -m elf_i386 -T guests/lib/guest32.ld $(filter %.o,$^) -o $@

guests: $(GUEST_DIR)/bench.elf $(GUEST_DIR)/bench32.elf build/bench/native build/bench/native32
-include $(wildcard build/bench/*.d build/bench/32/*.d $(GUEST_DIR)/64/bench/*.d $(GUEST_DIR)/32/bench/*.d)
