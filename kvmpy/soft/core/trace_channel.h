/* What the two files of the trace share. */
#ifndef KP_TRACE_CHANNEL_H
#define KP_TRACE_CHANNEL_H

#include "trace.h"

typedef struct {
    struct kp_trace_rule *rule; /* those of a group follow each other */
    uint32_t rule_count, kinds, served; /* kinds that its rules want, and among them those told when user space has answered */
    struct kp_trace_record *ring;
    uint32_t room, used;
    uint32_t flags;
    int fd, error;
    uint64_t lost;
} Channel;

struct Trace {
    Channel channel[KP_TRACE_CHANNELS];
    Cpu *exited; /* waits for user space's answer to `access`, or NULL */
    struct kp_trace_record access;
    uint64_t entered, left; /* host time of the last entry and exit */
};

uint64_t trace_host_ns(const Vm *vm);
/* Into every channel that wants it. True: a rule asks for an answer. */
bool trace_append(Cpu *c, struct kp_trace_record *r, const void *bytes, bool served);
/* The vCPU exits at the next boundary. */
void trace_leave(Cpu *c);
/* May a rule want such an event at a linear address? */
bool trace_wants_code(const Vm *vm, unsigned kind, uint64_t linear);
bool trace_wants_stop(const Vm *vm, unsigned kind, uint64_t subject, unsigned size);

#endif
