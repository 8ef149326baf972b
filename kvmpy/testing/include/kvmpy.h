/* What a guest says to the test that runs it: log lines, assertions, named moments, its exit code. For C (16, 32 and 64 bits) and
   for GNU as through the C preprocessor (.S files). Needs no library, no memory but a lock of 4 bytes, and the right to use ports: CPL 0, or
   ring 3 with IOPL 3 or the TSS's bitmap. At CPL 0 a message holds interrupts off. The macros for assembly keep registers and flags.

   On the wire: bytes at port 0xE9. Text is the log, line by line. A line that begins with byte 1 is a message:
       01 '+' FILE:LINE: EXPRESSION 0A            an assertion that held
       01 '-' FILE:LINE: EXPRESSION [09 DETAILS] 0A   one that failed
       01 '@' NAME 0A                             a moment; its time is that of its first byte
   A write of 4 bytes at port 0xF4 ends the guest with that number. */
#ifndef KVMPY_H
#define KVMPY_H

#define KVMPY_LOG_PORT 0xE9
#define KVMPY_EXIT_PORT 0xF4
#define KVMPY_FAILED 1 /* exit code of a failed kvmpy_assert */

#define KVMPY_TEXT_(text) #text
#define KVMPY_TEXT(text) KVMPY_TEXT_(text)

#ifdef __ASSEMBLER__

/* kvmpy_log("text")   kvmpy_time("name")   kvmpy_exit(code)
   kvmpy_assert(e, "eax == 5") after a comparison: e, ne, b, ... is the condition that must hold, as in a jump's name.
   kvmpy_expect(...) is the same and goes on after a failure.
   The macros are made for KVMPY_BITS; those named kvmpy_put16, kvmpy_put32, kvmpy_put64 for code that changes modes. In 16 and 32
   bits DS must reach the text, which lies in .rodata. */
#ifndef KVMPY_BITS
#ifdef __x86_64__
#define KVMPY_BITS 64
#else
#define KVMPY_BITS 32
#endif
#endif

        .comm   kvmpy_lock, 4, 4

        .macro  kvmpy_text_ text:vararg
        .pushsection .rodata
.Lkvmpy_text\@:
        .ascii  \text
        .set    .Lkvmpy_text_at, .Lkvmpy_text\@
        .set    .Lkvmpy_text_size, . - .Lkvmpy_text\@
        .popsection
        .endm

/* The lock is tried so often and then passed: a CPU that died with it silences nobody. */
        .macro  kvmpy_put16 text:vararg
        kvmpy_text_ \text
        pushfw
        pushaw
        mov     %cs, %ax
        test    $3, %al
        jnz     .Lkvmpy_user\@
        cli
.Lkvmpy_user\@:
        cld
        mov     $0xFFFF, %cx
.Lkvmpy_try\@:
        mov     $1, %ax
        xchg    %ax, kvmpy_lock
        test    %ax, %ax
        jz      .Lkvmpy_mine\@
        pause
        loop    .Lkvmpy_try\@
.Lkvmpy_mine\@:
        mov     $.Lkvmpy_text_at, %si
        mov     $.Lkvmpy_text_size, %cx
        mov     $KVMPY_LOG_PORT, %dx
        rep outsb
        movw    $0, kvmpy_lock
        popaw
        popfw
        .endm

        .macro  kvmpy_put32 text:vararg
        kvmpy_text_ \text
        pushfl
        pushal
        mov     %cs, %eax
        test    $3, %al
        jnz     .Lkvmpy_user\@
        cli
.Lkvmpy_user\@:
        cld
        mov     $0xFFFFF, %ecx
.Lkvmpy_try\@:
        mov     $1, %eax
        xchg    %eax, kvmpy_lock
        test    %eax, %eax
        jz      .Lkvmpy_mine\@
        pause
        loop    .Lkvmpy_try\@
.Lkvmpy_mine\@:
        mov     $.Lkvmpy_text_at, %esi
        mov     $.Lkvmpy_text_size, %ecx
        mov     $KVMPY_LOG_PORT, %edx
        rep outsb
        movl    $0, kvmpy_lock
        popal
        popfl
        .endm

        .macro  kvmpy_put64 text:vararg
        kvmpy_text_ \text
        lea     -128(%rsp), %rsp        /* the red zone of user code */
        pushfq
        push    %rax
        push    %rcx
        push    %rdx
        push    %rsi
        mov     %cs, %eax
        test    $3, %al
        jnz     .Lkvmpy_user\@
        cli
.Lkvmpy_user\@:
        cld
        mov     $0xFFFFF, %ecx
.Lkvmpy_try\@:
        mov     $1, %eax
        xchg    %eax, kvmpy_lock(%rip)
        test    %eax, %eax
        jz      .Lkvmpy_mine\@
        pause
        loop    .Lkvmpy_try\@
.Lkvmpy_mine\@:
        lea     .Lkvmpy_text_at(%rip), %rsi
        mov     $.Lkvmpy_text_size, %ecx
        mov     $KVMPY_LOG_PORT, %edx
        rep outsb
        movl    $0, kvmpy_lock(%rip)
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rax
        popfq
        lea     128(%rsp), %rsp
        .endm

#if KVMPY_BITS == 16
#define KVMPY_PUT kvmpy_put16
#elif KVMPY_BITS == 32
#define KVMPY_PUT kvmpy_put32
#else
#define KVMPY_PUT kvmpy_put64
#endif

        .macro  kvmpy_exit_ code
        mov     $\code, %eax
        mov     $KVMPY_EXIT_PORT, %dx
        out     %eax, %dx
.Lkvmpy_gone\@:
        pause                           /* no such port here */
        jmp     .Lkvmpy_gone\@
        .endm

        .macro  kvmpy_check_ fatal, condition, text:vararg
        j\condition .Lkvmpy_good\@
        KVMPY_PUT "\001-", \text
        .if     \fatal
        kvmpy_exit_ KVMPY_FAILED
        .endif
        jmp     .Lkvmpy_done\@
.Lkvmpy_good\@:
        KVMPY_PUT "\001+", \text
.Lkvmpy_done\@:
        .endm

#define kvmpy_log(text) KVMPY_PUT text, "\n"
#define kvmpy_time(name) KVMPY_PUT "\001@", name, "\n"
#define kvmpy_exit(code) kvmpy_exit_ code
#define kvmpy_assert(condition, text) kvmpy_check_ 1, condition, __FILE__, ":", KVMPY_TEXT(__LINE__), ": ", text, "\n"
#define kvmpy_expect(condition, text) kvmpy_check_ 0, condition, __FILE__, ":", KVMPY_TEXT(__LINE__), ": ", text, "\n"

#else /* C */

#ifdef __cplusplus
extern "C" {
#endif

__attribute__((weak)) int kvmpy_lock; /* one for all files: messages of several CPUs must not mix */

static inline unsigned long kvmpy_enter_(void) {
    unsigned long flags;
#ifdef __x86_64__ /* the red zone of user code lies below the stack pointer */
    __asm__ volatile("lea -128(%%rsp), %%rsp; pushfq; popq %0; lea 128(%%rsp), %%rsp" : "=r"(flags) : : "memory");
#else
    __asm__ volatile("pushfl; popl %0" : "=r"(flags) : : "memory");
#endif
    unsigned short cs;
    __asm__ volatile("movw %%cs, %0" : "=r"(cs));
    if (cs & 3) flags = 0;
    else __asm__ volatile("cli" : : : "memory");
    /* Tried so often and then passed: a CPU that died with the lock silences nobody. */
    for (unsigned long tries = 0; tries < 0xFFFFF && __atomic_exchange_n(&kvmpy_lock, 1, __ATOMIC_ACQUIRE); tries++)
        __asm__ volatile("pause");
    return flags;
}

static inline void kvmpy_leave_(unsigned long flags) {
    __atomic_store_n(&kvmpy_lock, 0, __ATOMIC_RELEASE);
    if (flags & 0x200) __asm__ volatile("sti" : : : "memory");
}

static inline void kvmpy_text_(const char *text) {
    unsigned long size = 0;
    while (text[size]) size++;
    __asm__ volatile("rep outsb" : "+S"(text), "+c"(size) : "d"(KVMPY_LOG_PORT) : "memory");
}

static inline void kvmpy_number_(unsigned long long value) {
    char text[19];
    char *at = text + sizeof text - 1;
    *at = 0;
    do {
        *--at = "0123456789abcdef"[value & 15];
        value >>= 4;
    } while (value);
    *--at = 'x';
    *--at = '0';
    kvmpy_text_(at);
}

static inline void kvmpy_put_(const char *text, const char *more) {
    unsigned long flags = kvmpy_enter_();
    kvmpy_text_(text);
    kvmpy_text_(more);
    kvmpy_leave_(flags);
}

static inline void kvmpy_put_value_(const char *text, unsigned long long value) {
    unsigned long flags = kvmpy_enter_();
    kvmpy_text_(text);
    kvmpy_number_(value);
    kvmpy_text_("\n");
    kvmpy_leave_(flags);
}

static inline void kvmpy_put_values_(const char *text, unsigned long long got, unsigned long long wanted) {
    unsigned long flags = kvmpy_enter_();
    kvmpy_text_(text);
    kvmpy_text_("\tgot ");
    kvmpy_number_(got);
    kvmpy_text_(", wanted ");
    kvmpy_number_(wanted);
    kvmpy_text_("\n");
    kvmpy_leave_(flags);
}

/* Ends the run: 0 is success. */
__attribute__((noreturn)) static inline void kvmpy_exit(unsigned code) {
    __asm__ volatile("outl %0, %w1" : : "a"(code), "Nd"(KVMPY_EXIT_PORT) : "memory");
    for (;;) __asm__ volatile("pause"); /* no such port here */
}

/* A line for the log. */
static inline void kvmpy_log(const char *line) { kvmpy_put_(line, "\n"); }

#define KVMPY_PLACE_ __FILE__ ":" KVMPY_TEXT(__LINE__) ": "

/* Logs "expression = 0x1f". */
#define kvmpy_show(expression) kvmpy_put_value_(#expression " = ", (unsigned long long)(expression))

/* Marks a moment; the name is a string literal. */
#define kvmpy_time(name) kvmpy_put_("\001@" name, "\n")

static inline int kvmpy_check_(int good, const char *held, const char *failed) {
    kvmpy_put_(good ? held : failed, "\n");
    return good;
}

static inline int kvmpy_check_equal_(unsigned long long got, unsigned long long wanted, const char *held, const char *failed) {
    if (got == wanted)
        kvmpy_put_(held, "\n");
    else
        kvmpy_put_values_(failed, got, wanted);
    return got == wanted;
}

#define KVMPY_CHECK_(expression, text) kvmpy_check_(!!(expression), "\001+" KVMPY_PLACE_ text, "\001-" KVMPY_PLACE_ text)
#define KVMPY_CHECK_EQUAL_(got, wanted, text) \
    kvmpy_check_equal_((unsigned long long)(got), (unsigned long long)(wanted), "\001+" KVMPY_PLACE_ text, "\001-" KVMPY_PLACE_ text)

/* Reports whether the expression holds, and goes on in any case; its value is whether it held. */
#define kvmpy_expect(expression) KVMPY_CHECK_(expression, #expression)
/* The same for two integers, whose values are reported when they differ. */
#define kvmpy_expect_equal(got, wanted) KVMPY_CHECK_EQUAL_(got, wanted, #got " == " #wanted)

/* These end the run with KVMPY_FAILED when it does not hold. */
#define kvmpy_assert(expression) ((void)(KVMPY_CHECK_(expression, #expression) || (kvmpy_exit(KVMPY_FAILED), 0)))
#define kvmpy_assert_equal(got, wanted) \
    ((void)(KVMPY_CHECK_EQUAL_(got, wanted, #got " == " #wanted) || (kvmpy_exit(KVMPY_FAILED), 0)))

#ifdef __cplusplus
}
#endif
#endif
#endif
