/* Carries out AMX's instructions on an x86-64 processor without them, so that code for matrix units can be tested.
 *
 * At an instruction that it does not know, a processor stops and Linux sends SIGILL: what the instruction does is done
 * here, and the program goes on behind it. What the processor itself would refuse, such as factors of other shapes
 * than those that the units were made ready for, ends the process as it would there. Only numbers below 1e-38, which
 * the processor takes for 0, are computed with.
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 and volume 1, chapter 18.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

enum { UNITS = 8, ROWS = 16, BYTES = 64 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Shapes;

static _Thread_local Shapes shapes;
static _Thread_local uint8_t units[UNITS][ROWS][BYTES];
static struct sigaction before;
static long carried_out, strayed;
static uintptr_t fence, behind;

static const int REGISTERS[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static float widened(const uint8_t *bfloat16) {
    uint16_t half;
    memcpy(&half, bfloat16, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int configure(const void *from) {
    Shapes wanted;
    memcpy(&wanted, from, sizeof wanted);
    int odd = wanted.palette != 1 || wanted.start_row != 0;
    for (int i = 0; i < 14; i++) odd |= wanted.reserved[i] != 0;
    for (int i = 0; i < 16; i++)
        odd |= wanted.rows[i] > ROWS || wanted.bytes[i] > BYTES || !wanted.rows[i] != !wanted.bytes[i] ||
               (i >= UNITS && wanted.rows[i]);
    if (odd) return 0;
    shapes = wanted;
    memset(units, 0, sizeof units);
    return 1;
}

static int ready(int unit) {
    return shapes.palette == 1 && shapes.rows[unit] > 0 && shapes.bytes[unit] > 0;
}

static int multiply(int sum, int left, int right) {
    int same = sum == left || sum == right || left == right;
    if (same || !ready(sum) || !ready(left) || !ready(right) || shapes.rows[sum] != shapes.rows[left] ||
        shapes.bytes[sum] != shapes.bytes[right] || shapes.bytes[left] != 4 * shapes.rows[right])
        return 0;
    for (int m = 0; m < shapes.rows[sum]; m++)
        for (int n = 0; n < shapes.bytes[sum] / 4; n++) {
            float even = 0, odd = 0, total;
            for (int k = 0; k < shapes.rows[right]; k++) {
                even += widened(&units[left][m][4 * k]) * widened(&units[right][k][4 * n]);
                odd += widened(&units[left][m][4 * k + 2]) * widened(&units[right][k][4 * n + 2]);
            }
            memcpy(&total, &units[sum][m][4 * n], sizeof total);
            total += even + odd;
            memcpy(&units[sum][m][4 * n], &total, sizeof total);
        }
    return 1;
}

static int move(int unit, uint8_t *memory, int64_t stride, int store) {
    if (!ready(unit)) return 0;
    if (!store) memset(units[unit], 0, sizeof units[unit]);
    for (int m = 0; m < shapes.rows[unit]; m++) {
        uint8_t *row = memory + m * stride;
        if ((uintptr_t)row < behind && (uintptr_t)row + shapes.bytes[unit] > fence)
            __atomic_fetch_add(&strayed, 1, __ATOMIC_RELAXED);
        memcpy(store ? row : units[unit][m], store ? units[unit][m] : row, shapes.bytes[unit]);
    }
    return 1;
}

/* The length of the instruction at `code`, which is done; 0: it is none of AMX's, or a processor would refuse it. */
static int carry_out(const uint8_t *code, const greg_t *registers) {
    if (code[0] != 0xC4 || (code[1] & 0x1F) != 2 || (code[1] & 0x80) == 0 || code[2] & 0x84) return 0;
    int index_high = code[1] & 0x40 ? 0 : 8, base_high = code[1] & 0x20 ? 0 : 8;
    int prefix = code[2] & 3, right = ~code[2] >> 3 & 15;
    int opcode = code[3], mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
    if (opcode != 0x5C && right != 0) return 0;
    if (mod == 3) {
        if (opcode == 0x49 && prefix == 0 && code[4] == 0xC0) memset(&shapes, 0, sizeof shapes);
        else if (opcode == 0x49 && prefix == 3 && rm == 0 && ready(reg)) memset(units[reg], 0, sizeof units[reg]);
        else if (opcode != 0x5C || prefix != 2 || right >= UNITS || !multiply(reg, rm, right)) return 0;
        return 5;
    }
    int length = 5, base = rm, indexed = rm == 4;
    int64_t stride = 0, offset = 0;
    if (indexed) {
        int sib = code[length++], index = (sib >> 3 & 7) | index_high;
        base = sib & 7;
        if (index != 4) stride = (int64_t)registers[REGISTERS[index]] << (sib >> 6);
    }
    if (mod == 0 && base == 5) return 0; /* without a register: no compiler writes this for an argument */
    if (mod == 1) offset = (int8_t)code[length++];
    if (mod == 2) {
        int32_t far;
        memcpy(&far, code + length, sizeof far);
        offset = far, length += 4;
    }
    uint8_t *memory = (uint8_t *)registers[REGISTERS[base | base_high]] + offset;
    if (opcode == 0x49 && prefix == 0 && reg == 0) return configure(memory + stride) ? length : 0;
    if (opcode != 0x4B || !indexed || (prefix != 2 && prefix != 3)) return 0;
    return move(reg, memory, stride, prefix == 2) ? length : 0;
}

static void at_unknown(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    int length = carry_out((const uint8_t *)registers[REG_RIP], registers);
    (void)info;
    if (length == 0) sigaction(number, &before, 0); /* and the processor stops there again */
    registers[REG_RIP] += length;
    __atomic_fetch_add(&carried_out, length > 0, __ATOMIC_RELAXED);
}

void begin_emulation(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = at_unknown;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before);
}

void end_emulation(void) { sigaction(SIGILL, &before, 0); }

/* From now on, count the rows that units load from or store to the bytes from `begin` on, before `end`. */
void watch(const void *begin, const void *end) {
    fence = (uintptr_t)begin, behind = (uintptr_t)end;
    __atomic_store_n(&strayed, 0, __ATOMIC_RELAXED);
}

long rows_watched(void) { return __atomic_load_n(&strayed, __ATOMIC_RELAXED); }

/* How many instructions were carried out, in all threads. */
long emulated(void) { return __atomic_load_n(&carried_out, __ATOMIC_RELAXED); }

/* Whether the units of the calling thread were made ready and not released. */
int in_use(void) { return shapes.palette != 0; }
