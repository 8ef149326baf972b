/* The guest's MXCSR in the host's while guest code runs. */
#ifndef KP_FPENV_H
#define KP_FPENV_H

#include "cpu.h"

#define MXCSR_VALID 0xffffu /* all bits exist, DAZ too */

void fp_enter(Cpu *c); /* the host's MXCSR becomes the guest's, with every exception masked */
void fp_leave(Cpu *c); /* takes the sticky flags, gives the host its default back */
uint32_t mxcsr_sync(Cpu *c); /* the guest's MXCSR with all flags raised so far; inside and outside run() */
void mxcsr_write(Cpu *c, uint32_t value);

#endif
