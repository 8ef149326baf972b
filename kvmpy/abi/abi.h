/* KVM's x86 record format without kernel headers. For the software core and the ioctl glue. */
#ifndef KVMPY_ABI_H
#define KVMPY_ABI_H

#include <stdint.h>

#include "abi/constants.inc"
#include "abi/capabilities.inc"
#include "abi/ioctls.inc"
#include "abi/registers.inc"
#include "abi/run.inc"
#include "abi/vm.inc"

#endif
