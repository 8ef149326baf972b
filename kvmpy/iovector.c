/* Runs of buffers: cut, read, written. */
#define _GNU_SOURCE /* preadv */
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "iovector.inc"

_Static_assert(sizeof(struct kp_buffer) == sizeof(struct iovec), "kp_buffer is an iovec");
_Static_assert(offsetof(struct kp_buffer, base) == offsetof(struct iovec, iov_base), "kp_buffer is an iovec");
_Static_assert(offsetof(struct kp_buffer, size) == offsetof(struct iovec, iov_len), "kp_buffer is an iovec");

#define ONE_CALL 1024 /* IOV_MAX of Linux */

uint32_t kp_buffers_cut(const struct kp_buffer *in, uint32_t count, uint64_t offset, uint64_t size, struct kp_buffer *out)
{
    uint32_t made = 0;
    for (uint32_t n = 0; n < count && size; n++) {
        uint64_t have = in[n].size;
        if (offset >= have) {
            offset -= have;
            continue;
        }
        have -= offset;
        if (have > size)
            have = size;
        out[made++] = (struct kp_buffer){.base = (char *)in[n].base + offset, .size = have};
        size -= have;
        offset = 0;
    }
    return made;
}

static int64_t move(int fd, const struct kp_buffer *in, uint32_t count, int64_t offset, bool write)
{
    int64_t done = 0;
    uint64_t into = 0; /* bytes of in[0] that are done */
    struct kp_buffer part[ONE_CALL];
    while (count) {
        if (into == in->size) {
            in++;
            count--;
            into = 0;
            continue;
        }
        uint32_t now = count < ONE_CALL ? count : ONE_CALL;
        const struct kp_buffer *from = in;
        if (into) { /* a call that stopped in the middle of a buffer */
            now = kp_buffers_cut(in, now, into, UINT64_MAX, part);
            from = part;
        }
        const struct iovec *vec = (const struct iovec *)from;
        ssize_t moved = write ? pwritev(fd, vec, (int)now, offset + done) : preadv(fd, vec, (int)now, offset + done);
        if (moved < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (!moved)
            break;
        done += moved;
        into += (uint64_t)moved;
        while (count && into >= in->size) {
            into -= in->size;
            in++;
            count--;
        }
    }
    return done;
}

int64_t kp_buffers_read(int fd, const struct kp_buffer *in, uint32_t count, int64_t offset) { return move(fd, in, count, offset, false); }
int64_t kp_buffers_write(int fd, const struct kp_buffer *in, uint32_t count, int64_t offset) { return move(fd, in, count, offset, true); }
