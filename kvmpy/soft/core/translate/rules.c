/* Which emitter writes which instruction; what is not named is done by its handler. */
#include <pthread.h>

#include "emit.h"

#define BOTH(name, fn) [INSN_##name##_EbGb] = fn, [INSN_##name##_EvGv] = fn
#define ALU(name, fn, fn_rax) \
    BOTH(name, fn), [INSN_##name##_GbEb] = fn, [INSN_##name##_GvEv] = fn, [INSN_##name##_EbIb] = fn, [INSN_##name##_EvIz] = fn, \
    [INSN_##name##_EbIb82] = fn, [INSN_##name##_EvIb] = fn, [INSN_##name##_ALIb] = fn_rax, [INSN_##name##_rAXIz] = fn_rax
#define UNARY(name) [INSN_##name##_Eb] = translate_copy, [INSN_##name##_Ev] = translate_copy
#define SHIFT(name) \
    [INSN_##name##_EbIb] = translate_copy, [INSN_##name##_EvIb] = translate_copy, [INSN_##name##_Eb1] = translate_copy, \
    [INSN_##name##_Ev1] = translate_copy, [INSN_##name##_EbCL] = translate_shift_cl, [INSN_##name##_EvCL] = translate_shift_cl
#define BIT(name, fn) [INSN_##name##_EvIb] = fn
#define STRING(name) [INSN_##name##_b] = translate_string, [INSN_##name##_v] = translate_string
#define CONDITION(cc) \
    [INSN_cmov##cc] = translate_copy, [INSN_set##cc] = translate_copy, [INSN_j##cc##_Jb] = translate_jcc, [INSN_j##cc##_Jz] = translate_jcc

emit_fn emitter[INSN_COUNT] = {
    ALU(add, translate_copy, translate_copy_rax), ALU(or, translate_copy, translate_copy_rax), ALU(adc, translate_copy, translate_copy_rax),
    ALU(sbb, translate_copy, translate_copy_rax), ALU(and, translate_copy, translate_copy_rax), ALU(sub, translate_copy, translate_copy_rax),
    ALU(xor, translate_copy, translate_copy_rax), ALU(cmp, translate_compare, translate_compare_rax),
    BOTH(test, translate_compare), [INSN_test_EbIb] = translate_compare, [INSN_test_EvIz] = translate_compare,
    [INSN_test_EbIb1] = translate_compare, [INSN_test_EvIz1] = translate_compare, [INSN_test_ALIb] = translate_compare_rax,
    [INSN_test_rAXIz] = translate_compare_rax,
    UNARY(inc), UNARY(dec), UNARY(not), UNARY(neg), [INSN_inc_Zv] = translate_incdec_row, [INSN_dec_Zv] = translate_incdec_row,
    SHIFT(rol), SHIFT(ror), SHIFT(rcl), SHIFT(rcr), SHIFT(shl), SHIFT(shr), SHIFT(sal), SHIFT(sar),
    [INSN_shld_Ib] = translate_copy, [INSN_shrd_Ib] = translate_copy, [INSN_shld_CL] = translate_shift_cl, [INSN_shrd_CL] = translate_shift_cl,
    [INSN_mul_Eb] = translate_mul, [INSN_mul_Ev] = translate_mul, [INSN_imul_Eb] = translate_mul, [INSN_imul_Ev] = translate_mul,
    [INSN_div_Eb] = translate_div, [INSN_div_Ev] = translate_div, [INSN_idiv_Ev] = translate_idiv,
    [INSN_imul_GvEv] = translate_copy, [INSN_imul_GvEvIz] = translate_copy, [INSN_imul_GvEvIb] = translate_copy,
    [INSN_bt_EvGv] = translate_bit_string, BIT(bt, translate_compare), BIT(bts, translate_copy), BIT(btr, translate_copy), BIT(btc, translate_copy),
    [INSN_bsf] = translate_copy, [INSN_bsr] = translate_copy, [INSN_tzcnt] = translate_copy, [INSN_lzcnt] = translate_copy, [INSN_popcnt] = translate_copy,
    [INSN_crc32_Eb] = translate_copy, [INSN_crc32_Ev] = translate_copy, [INSN_adcx] = translate_copy, [INSN_adox] = translate_copy,
    [INSN_movbe_GvMv] = translate_copy, [INSN_movbe_MvGv] = translate_copy, [INSN_movbe_GvMv_66] = translate_copy, [INSN_movbe_MvGv_66] = translate_copy,
    [INSN_andn] = translate_bmi, [INSN_blsr] = translate_bmi, [INSN_blsmsk] = translate_bmi, [INSN_blsi] = translate_bmi,
    [INSN_bzhi] = translate_bmi, [INSN_pext] = translate_bmi, [INSN_pdep] = translate_bmi, [INSN_mulx] = translate_bmi,
    [INSN_bextr] = translate_bmi, [INSN_shlx] = translate_bmi, [INSN_sarx] = translate_bmi, [INSN_shrx] = translate_bmi, [INSN_rorx] = translate_bmi,
    [INSN_mov_ALOb] = translate_moffs, [INSN_mov_rAXOv] = translate_moffs, [INSN_mov_ObAL] = translate_moffs,
    [INSN_mov_OvrAX] = translate_moffs, BOTH(mov, translate_copy), [INSN_mov_GbEb] = translate_copy, [INSN_mov_GvEv] = translate_copy, [INSN_mov_ZbIb] = translate_mov_row,
    [INSN_mov_ZvIv] = translate_mov_row, [INSN_mov_EbIb] = translate_copy, [INSN_mov_EvIz] = translate_copy, [INSN_lea] = translate_lea,
    [INSN_movzx_GvEb] = translate_movzx, [INSN_movzx_GvEw] = translate_copy, [INSN_movsx_GvEb] = translate_movzx, [INSN_movsx_GvEw] = translate_copy,
    [INSN_movsxd] = translate_copy, [INSN_movnti] = translate_copy, [INSN_bswap] = translate_bswap,
    BOTH(xchg, translate_copy), [INSN_xchg_ZvrAX] = translate_xchg_row, BOTH(xadd, translate_copy), BOTH(cmpxchg, translate_cmpxchg),
    [INSN_bts_EvGv] = translate_bit_string, [INSN_btr_EvGv] = translate_bit_string, [INSN_btc_EvGv] = translate_bit_string,
    [INSN_cmpxchg8b] = translate_cmpxchg_pair, [INSN_cmpxchg16b] = translate_cmpxchg_pair, [INSN_xlat] = translate_xlat,
    [INSN_pushf] = translate_pushf, [INSN_popf] = translate_popf, [INSN_cli] = translate_cli, [INSN_sti] = translate_sti,
    [INSN_swapgs] = translate_swapgs, [INSN_rdfsbase] = translate_base, [INSN_rdgsbase] = translate_base,
    [INSN_wrfsbase] = translate_base, [INSN_wrgsbase] = translate_base, [INSN_pause] = translate_pause,
    [INSN_mfence] = translate_fence, [INSN_lfence] = translate_fence, [INSN_sfence] = translate_fence,
    STRING(movs), STRING(stos), STRING(lods), STRING(scas), STRING(cmps),
    [INSN_cbw] = translate_cbw, [INSN_cwd] = translate_cwd,
    CONDITION(o), CONDITION(no), CONDITION(b), CONDITION(ae), CONDITION(e), CONDITION(ne), CONDITION(be), CONDITION(a),
    CONDITION(s), CONDITION(ns), CONDITION(p), CONDITION(np), CONDITION(l), CONDITION(ge), CONDITION(le), CONDITION(g),
    [INSN_jmp_Jb] = translate_jmp, [INSN_jmp_Jz] = translate_jmp, [INSN_jmp_Ev] = translate_jmp_ev, [INSN_call_Jz] = translate_call,
    [INSN_call_Ev] = translate_call_ev, [INSN_ret] = translate_ret, [INSN_ret_Iw] = translate_ret,
    [INSN_push_Zv] = translate_push, [INSN_pop_Zv] = translate_pop, [INSN_push_Iz] = translate_push_imm, [INSN_push_Ib] = translate_push_imm,
    [INSN_leave] = translate_leave, [INSN_push_Ev] = translate_push_rm, [INSN_loop] = translate_loop, [INSN_jcxz] = translate_jcxz,
    [INSN_lahf] = translate_lahf, [INSN_lahf_64] = translate_lahf, [INSN_sahf] = translate_sahf, [INSN_sahf_64] = translate_sahf,
    [INSN_clc] = translate_carry, [INSN_stc] = translate_carry, [INSN_cmc] = translate_carry, [INSN_cld] = translate_direction,
    [INSN_std] = translate_direction, [INSN_FNSTCW] = translate_fnstcw, [INSN_mov_EvSw] = translate_mov_selector,
    [INSN_nop] = translate_nothing, [INSN_nop_1f] = translate_nothing, [INSN_endbr64] = translate_nothing, [INSN_endbr32] = translate_nothing,
    [INSN_prefetchnta] = translate_nothing, [INSN_prefetcht0] = translate_nothing, [INSN_prefetcht1] = translate_nothing,
    [INSN_prefetcht2] = translate_nothing, [INSN_prefetchw] = translate_nothing,
};

static void prepare(void)
{
    host_prepare();
    for (unsigned id = 0; id < INSN_COUNT; id++) {
        if (emitter[id] && !host_has(insn_table[id].feature))
            emitter[id] = NULL;
        else if (!emitter[id] && vector_instruction(id))
            emitter[id] = translate_vector;
    }
}

void emitters_prepare(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, prepare);
}
