// QEMU plugin: counts how often each thread runs each translated block of code in the regions that the guest marks, and
// writes it to the file `out=FILE`. For each region one line `region VCPU`, where VCPU is the thread that ended it;
// then the memory map, as lines `map ...` of /proc/self/maps; then, for each block that ran, a line `block ADDRESS CODE
// VCPU:EXECUTIONS ...` with the threads that ran it, all hexadecimal, CODE as the instructions' bytes.
//
// The guest marks with a system call that Linux does not have: syscall(0x1A17, 0) begins a region, syscall(0x1A17, 1)
// ends it. Elsewhere it fails without any effect.
//
// With `caches=BYTES:WAYS:BYTES:WAYS` as well, of the first and the second level, the accesses of the thread that calls
// syscall(0x1A17, 2) go from then on, and from empty caches, through a model of them, until syscall(0x1A17, 3). Then
// each region also has, for each block that brought lines in, a line `fills ADDRESS FIRST SECOND` with how many into
// each level, and at its end a line `unknown ACCESSES` with how many of that thread went past the model.

#include <glib.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <qemu-plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "caches.h"
#include "hidden_accesses.h"

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

enum { MARK = 0x1A17, BYTES = 4 };
enum { BEGINS, ENDS, MODELS, MODELS_NO_MORE };  // what is marked
enum { REGISTERS = 32, PREDICATES = 16 };

// One for each translation: code that QEMU translates again, as when its buffer was full, is listed again.
typedef struct Block {
    struct Block* next;
    uint64_t address;
    qemu_plugin_u64 executed;
    qemu_plugin_u64 before;  // executions until the region began
    Fills fills;             // since then, of the thread whose accesses are modelled
    size_t size;
    unsigned char code[];
} Block;

// Of each thread; QEMU adds zeroed ones as threads are created. No count is reset where a region begins: a thread that
// runs the block just then might write the old one back.
typedef struct Counts {
    uint64_t executed;
    uint64_t before;
} Counts;

static Block* blocks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE* out;

static Caches caches;
static bool models;                   // caches, as soon as a thread asks for it
static unsigned modelled = UINT_MAX;  // that thread, if there is one
static qemu_plugin_u64 modelling;     // 1 for it, 0 for others
static uint64_t unknown_accesses;
static struct qemu_plugin_register* registers[REGISTERS];  // x0 to x30 and sp
static struct qemu_plugin_register* predicates[PREDICATES];
static struct qemu_plugin_register* granules;  // doublewords of a vector
static GByteArray* value;                      // of the register that was read last

// An instruction whose accesses QEMU does not tell.
typedef struct Teller {
    Block* block;
    Hidden hidden;
} Teller;

static void accessed(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void* block) {
    if (vcpu != modelled) return;
    access_bytes(&caches, address, UINT64_C(1) << qemu_plugin_mem_size_shift(info), &((Block*)block)->fills);
}

// The first bytes of a register, all there are of X registers.
static uint64_t read_register(struct qemu_plugin_register* handle) {
    uint64_t read = 0;
    value->len = 0;
    if (qemu_plugin_read_register(handle, value) < 0) abort();
    memcpy(&read, value->data, value->len < sizeof read ? value->len : sizeof read);
    return read;
}

static void accessed_hidden(unsigned vcpu, void* data) {
    (void)vcpu;
    const Teller* teller = data;
    const Hidden* hidden = &teller->hidden;
    uint64_t lanes = 1, first = 0, last = 0;
    if (hidden->lane_bytes) {
        lanes = hidden->lanes ? hidden->lanes : read_register(granules) * 8 / hidden->lane_bytes;
        last = lanes - 1;
    }
    if (hidden->predicate != NONE) {
        read_register(predicates[hidden->predicate]);
        const uint8_t* active = value->data;
        while (first < lanes && !(active[first * hidden->lane_bytes / 8] >> first * hidden->lane_bytes % 8 & 1))
            first++;
        if (first == lanes) return;
        while (!(active[last * hidden->lane_bytes / 8] >> last * hidden->lane_bytes % 8 & 1)) last--;
    }
    if (hidden->repeated) first = last = 0;
    uint64_t address = read_register(registers[hidden->base]) & ~(uint64_t)(hidden->aligned - 1);
    if (hidden->index != NONE) address += read_register(registers[hidden->index]) << hidden->shift;
    address += (uint64_t)(int64_t)hidden->offset * (hidden->offset_in_bytes ? 1 : lanes * hidden->bytes);
    access_bytes(&caches, address + first * hidden->bytes, (last - first + 1) * hidden->bytes, &teller->block->fills);
}

static void accessed_unknown(unsigned vcpu, void* data) {
    (void)vcpu, (void)data;
    unknown_accesses++;
}

static void model_accesses(struct qemu_plugin_insn* instruction, uint32_t word, Block* block) {
    qemu_plugin_register_vcpu_mem_cb(instruction, accessed, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, block);
    Teller told = {block, {0}};
    const Visibility seen = visibility(word, &told.hidden);
    if (seen == SEEN) return;
    Teller* teller = malloc(sizeof *teller);
    if (!teller) abort();
    *teller = told;
    qemu_plugin_register_vcpu_insn_exec_cond_cb(instruction, seen == HIDDEN ? accessed_hidden : accessed_unknown,
                                                QEMU_PLUGIN_CB_R_REGS, QEMU_PLUGIN_COND_EQ, modelling, 1, teller);
}

// Registers are alike in all threads.
static void find_registers(qemu_plugin_id_t id, unsigned vcpu) {
    (void)id, (void)vcpu;
    if (registers[0]) return;
    const GArray* found = qemu_plugin_get_registers();
    for (unsigned i = 0; i < found->len; i++) {
        const qemu_plugin_reg_descriptor* of = (const qemu_plugin_reg_descriptor*)(const void*)found->data + i;
        unsigned number;
        int end = 0;
        if (!strcmp(of->name, "sp")) registers[STACK_POINTER] = of->handle;
        if (!strcmp(of->name, "vg")) granules = of->handle;
        if (sscanf(of->name, "x%u%n", &number, &end) == 1 && !of->name[end] && number < REGISTERS)
            registers[number] = of->handle;
        if (sscanf(of->name, "p%u%n", &number, &end) == 1 && !of->name[end] && number < PREDICATES)
            predicates[number] = of->handle;
    }
}

static void model_thread(unsigned vcpu, bool begins) {
    if (begins) empty_caches(&caches);
    modelled = begins ? vcpu : UINT_MAX;
    qemu_plugin_u64_set(modelling, vcpu, begins);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb* tb) {
    (void)id;
    size_t instructions = qemu_plugin_tb_n_insns(tb);
    Block* block = malloc(sizeof *block + instructions * BYTES);
    if (!block) abort();
    block->address = qemu_plugin_tb_vaddr(tb);
    struct qemu_plugin_scoreboard* counts = qemu_plugin_scoreboard_new(sizeof(Counts));
    block->executed = qemu_plugin_scoreboard_u64_in_struct(counts, Counts, executed);
    block->before = qemu_plugin_scoreboard_u64_in_struct(counts, Counts, before);
    block->size = instructions * BYTES;
    block->fills = (Fills){0};
    for (size_t i = 0; i < instructions; i++) {
        struct qemu_plugin_insn* instruction = qemu_plugin_tb_get_insn(tb, i);
        uint32_t word;
        qemu_plugin_insn_data(instruction, &word, BYTES);
        memcpy(block->code + i * BYTES, &word, BYTES);
        if (models) model_accesses(instruction, word, block);
    }
    // Counted by inlined code, for every block: which ones will run in a region is not known yet.
    qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, QEMU_PLUGIN_INLINE_ADD_U64, block->executed, 1);
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    pthread_mutex_unlock(&lock);
}

static void write_map(void) {
    char line[4096];
    FILE* maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        if (strchr(line, '/')) fprintf(out, "map %s", line);
    if (maps) fclose(maps);
}

static void write_block(const Block* block) {
    fprintf(out, "block %" PRIx64 " ", block->address);
    for (size_t i = 0; i < block->size; i++) fprintf(out, "%02x", block->code[i]);
}

// Notes the executions until now, and writes those since they were noted last if `writes` says so.
static void note_executions(const Block* block, bool writes) {
    bool written = false;
    for (int vcpu = 0; vcpu < qemu_plugin_num_vcpus(); vcpu++) {
        uint64_t executed = qemu_plugin_u64_get(block->executed, vcpu);
        uint64_t before = qemu_plugin_u64_get(block->before, vcpu);
        if (executed == before) continue;
        qemu_plugin_u64_set(block->before, vcpu, executed);
        if (!writes) continue;
        if (!written) write_block(block);
        written = true;
        fprintf(out, " %x:%" PRIx64, vcpu, executed - before);
    }
    if (written) fputc('\n', out);
}

// The same of the lines that were brought in.
static void note_fills(Block* block, bool writes) {
    if (writes && block->fills.first)
        fprintf(out, "fills %" PRIx64 " %" PRIx64 " %" PRIx64 "\n", block->address, block->fills.first,
                block->fills.second);
    block->fills = (Fills){0};
}

static void system_call(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t mark, uint64_t a2, uint64_t a3,
                        uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARK) return;
    if (mark == MODELS || mark == MODELS_NO_MORE) {
        if (models) model_thread(vcpu, mark == MODELS);
        return;
    }
    const bool ends = mark == ENDS;
    pthread_mutex_lock(&lock);
    if (ends) {
        fprintf(out, "region %x\n", vcpu);
        write_map();
    }
    for (Block* block = blocks; block; block = block->next) {
        note_executions(block, ends);
        note_fills(block, ends);
    }
    if (ends && modelled != UINT_MAX) fprintf(out, "unknown %" PRIx64 "\n", unknown_accesses);
    unknown_accesses = 0;
    fflush(out);
    pthread_mutex_unlock(&lock);
}

static void prepare_model(qemu_plugin_id_t id, const char* sizes) {
    uint64_t bytes[2], ways[2];
    if (sscanf(sizes, "%" SCNu64 ":%" SCNu64 ":%" SCNu64 ":%" SCNu64, &bytes[0], &ways[0], &bytes[1], &ways[1]) != 4)
        abort();
    make_caches(&caches, bytes, ways);
    modelling = qemu_plugin_scoreboard_u64(qemu_plugin_scoreboard_new(sizeof(uint64_t)));
    value = g_byte_array_new();
    models = true;
    qemu_plugin_register_vcpu_init_cb(id, find_registers);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc, char** argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
        if (!strncmp(argv[i], "caches=", 7)) prepare_model(id, argv[i] + 7);
    }
    if (!out) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, system_call);
    return 0;
}
