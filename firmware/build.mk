# The BIOS: build/firmware/bios.bin, 64 KiB, copied to kvmpy/blobs/.
BLOBS += kvmpy/blobs/bios.bin

BIOS_SRC := $(sort $(wildcard firmware/*.S))
BIOS_OBJ := $(BIOS_SRC:firmware/%.S=build/firmware/%.o)

build/firmware/%.o: firmware/%.S firmware/bios.inc
	@mkdir -p $(@D)
	$(CC) -m32 -Wall -Werror -Wa,--fatal-warnings -Ifirmware -c $< -o $@

build/firmware/bios.elf: $(BIOS_OBJ) firmware/bios.ld
	ld -m elf_i386 --fatal-warnings -T firmware/bios.ld $(BIOS_OBJ) -o $@

build/firmware/bios.bin: build/firmware/bios.elf
	objcopy -O binary --gap-fill 0xFF $< $@

kvmpy/blobs/bios.bin: build/firmware/bios.bin
	@mkdir -p $(@D)
	cp $< $@

firmware: kvmpy/blobs/bios.bin
