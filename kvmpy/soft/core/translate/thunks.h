/* Common pieces of translated code. */
#ifndef KP_THUNKS_H
#define KP_THUNKS_H

#include "translate.h"

/* Writes them at the start of the code cache; Translator.insns and .exits must be known. */
void emit_thunks(struct Translator *t);

#endif
