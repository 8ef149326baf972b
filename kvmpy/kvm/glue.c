/* ioctls with the kernel's answer as one value: >= 0, or -errno. cffi releases the GIL around each call. */
#include "kvm/glue.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

int kvm_open(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int kvm_ioctl(int fd, unsigned long request, unsigned long argument)
{
    int r = ioctl(fd, request, argument);
    return r < 0 ? -errno : r;
}

int kvm_ioctl_ptr(int fd, unsigned long request, void *argument)
{
    int r = ioctl(fd, request, argument);
    return r < 0 ? -errno : r;
}

int kvm_irq_line(int fd, uint32_t gsi, uint32_t level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level};
    return kvm_ioctl_ptr(fd, KVM_IRQ_LINE, &line);
}

/* status: below 0 the interrupt was masked, 0 it was merged with a pending one, else the number of CPUs it went to. */
int kvm_irq_line_status(int fd, uint32_t gsi, uint32_t level)
{
    struct kvm_irq_level line = {.irq = gsi, .level = level};
    int r = kvm_ioctl_ptr(fd, KVM_IRQ_LINE_STATUS, &line);
    return r < 0 ? r : line.status < 0 ? 0 : line.status;
}

int kvm_signal_msi(int fd, uint64_t address, uint32_t data)
{
    struct kvm_msi msi = {.address_lo = (uint32_t)address, .address_hi = (uint32_t)(address >> 32), .data = data};
    return kvm_ioctl_ptr(fd, KVM_SIGNAL_MSI, &msi);
}

void *kvm_map(int fd, uint64_t offset, uint64_t size, int *error)
{
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
    if (map == MAP_FAILED) {
        *error = -errno;
        return NULL;
    }
    *error = 0;
    return map;
}

/* A mapping holds the vCPU's file, and that the VM: unmapping would leave Python's pointers dangling, so a plain page takes its place. */
int kvm_map_detach(void *map, uint64_t size)
{
    unsigned char first[4096];
    size_t kept = size < sizeof first ? size : sizeof first;
    memcpy(first, map, kept);
    if (mmap(map, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        return -errno;
    memcpy(map, first, kept);
    return 0;
}

void kvm_unmap(void *map, uint64_t size)
{
    munmap(map, size);
}
