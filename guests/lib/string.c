/* What the compiler calls by itself, and the command line. */
#include "guest.h"

void *memset(void *to, int value, size_t count) {
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, size_t count) {
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    return start;
}

void *memmove(void *to, const void *from, size_t count) {
    u8 *d = to;
    const u8 *s = from;
    if ((ulong)d - (ulong)s >= count) return memcpy(to, from, count);
    while (count--) d[count] = s[count];
    return to;
}

int memcmp(const void *a, const void *b, size_t count) {
    const u8 *x = a, *y = b;
    for (; count; count--, x++, y++)
        if (*x != *y) return *x - *y;
    return 0;
}

size_t strlen(const char *s) {
    size_t n = 0;
    while (s[n]) n++;
    return n;
}

bool starts_with(const char *s, const char *start) {
    while (*start)
        if (*s++ != *start++) return false;
    return true;
}

const char *command_line(void) {
    if (!start_info || start_info->magic != START_INFO_MAGIC || !start_info->command_line) return "";
    return (const char *)(ulong)start_info->command_line;
}

static const char *find(const char *name) {
    const char *s = command_line();
    size_t n = strlen(name);
    while (*s) {
        while (*s == ' ') s++;
        if (starts_with(s, name) && (s[n] == '=' || s[n] == ' ' || !s[n])) return s + n;
        while (*s && *s != ' ') s++;
    }
    return 0;
}

bool option_given(const char *name) { return find(name) != 0; }

u64 option(const char *name, u64 otherwise) {
    const char *s = find(name);
    if (!s || *s != '=') return otherwise;
    u64 value = 0;
    for (s++; *s >= '0' && *s <= '9'; s++) value = 10 * value + (u64)(*s - '0');
    return value;
}
