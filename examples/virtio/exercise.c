/* Exercise: a virtio disk. Fill the gap. */
#include <kernel.h>

enum {
    BASE = 0xFEB00000u, MAGIC = BASE, DEVICE_ID = BASE + 8, DRIVER_FEATURES = BASE + 0x20, DRIVER_FEATURES_SEL = BASE + 0x24,
    QUEUE_SEL = BASE + 0x30, QUEUE_NUM = BASE + 0x38, QUEUE_READY = BASE + 0x44, QUEUE_NOTIFY = BASE + 0x50, STATUS = BASE + 0x70,
    QUEUE_DESC = BASE + 0x80, QUEUE_DRIVER = BASE + 0x90, QUEUE_DEVICE = BASE + 0xA0,
    SIZE = 8, NEXT = 1, WRITE = 2,
};

static struct {
    u64 address;
    u32 length;
    u16 flags, next;
} descriptors[SIZE] __attribute__((aligned(16)));

static struct {
    u16 flags;
    volatile u16 index;
    u16 ring[SIZE];
} available __attribute__((aligned(2)));

static struct {
    u16 flags;
    volatile u16 index;
    struct {
        u32 id, length;
    } ring[SIZE];
} used __attribute__((aligned(4)));

static struct {
    u32 type, reserved;
    u64 sector;
} header;
static u8 buffer[512];
static volatile u8 status;

/* Reads a sector into buffer: the device's status, 255 when it does not answer. */
static int read_sector(u64 sector) {
    /* GAP */
    return 255;
}

static void open_disk(void) {
    kvmpy_assert_equal(read32(MAGIC), 0x74726976);
    kvmpy_assert_equal(read32(DEVICE_ID), 2);
    write32(STATUS, 0);
    write32(STATUS, 3); /* ACKNOWLEDGE, DRIVER */
    write32(DRIVER_FEATURES_SEL, 0);
    write32(DRIVER_FEATURES, 0);
    write32(DRIVER_FEATURES_SEL, 1);
    write32(DRIVER_FEATURES, 1); /* VERSION_1 */
    write32(STATUS, 11);         /* FEATURES_OK */
    kvmpy_assert(read32(STATUS) & 8);
    write32(QUEUE_SEL, 0);
    write32(QUEUE_NUM, SIZE);
    write32(QUEUE_DESC, (u64)descriptors);
    write32(QUEUE_DRIVER, (u64)&available);
    write32(QUEUE_DEVICE, (u64)&used);
    write32(QUEUE_READY, 1);
    write32(STATUS, 15); /* DRIVER_OK */
}

int main(void) {
    open_disk();
    for (u64 sector = 0; sector < 12; sector++) {
        for (int n = 0; n < SIZE; n++) available.ring[n] = 0xDEAD; /* nothing of the request before may be used again */
        int result = read_sector(sector);
        if (result) {
            kvmpy_log(result == 255 ? "no answer" : "error");
            continue;
        }
        buffer[16] = 0;
        kvmpy_log((const char *)buffer);
    }
    return 0;
}
