/* ioctl with the kernel's answer as one value: >= 0, or -errno. cffi releases the GIL around each call. */
#include "kvm/glue.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

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
