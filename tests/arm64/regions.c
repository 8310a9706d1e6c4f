// QEMU plugin: counts how often each thread runs each translated block of code in the regions that the guest marks, and
// writes it to the file `out=FILE`. For each region one line `region VCPU`, where VCPU is the thread that ended it;
// then the memory map, as lines `map ...` of /proc/self/maps; then, for each block that ran, a line `block ADDRESS CODE
// VCPU:EXECUTIONS ...` with the threads that ran it, all hexadecimal, CODE as the instructions' bytes.
//
// The guest marks with a system call that Linux does not have: syscall(0x1A17, 0) begins a region, syscall(0x1A17, 1)
// ends it. Elsewhere it fails without any effect.

#include <inttypes.h>
#include <pthread.h>
#include <qemu-plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

enum { MARK = 0x1A17, BYTES = 4 };

// One for each translation: code that QEMU translates again, as when its buffer was full, is listed again.
typedef struct Block {
    struct Block* next;
    uint64_t address;
    qemu_plugin_u64 executed;
    qemu_plugin_u64 before;  // executions until the region began
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
    for (size_t i = 0; i < instructions; i++)
        qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i), block->code + i * BYTES, BYTES);
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

static void system_call(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t ends, uint64_t a2, uint64_t a3,
                        uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARK) return;
    pthread_mutex_lock(&lock);
    if (ends) {
        fprintf(out, "region %x\n", vcpu);
        write_map();
    }
    for (const Block* block = blocks; block; block = block->next) note_executions(block, ends);
    fflush(out);
    pthread_mutex_unlock(&lock);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int argc, char** argv) {
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4)) out = fopen(argv[i] + 4, "w");
    if (!out) return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, system_call);
    return 0;
}
