/* Prototypes of the ioctl glue. */
#ifndef KVMPY_KVM_GLUE_H
#define KVMPY_KVM_GLUE_H

#include "abi/abi.h"
#include "abi/history.inc"
#include "kvm/glue.inc"

#endif
