// A model of a core's data caches: two levels, least recently used lines leave first, stores bring lines in as loads
// do. What the second level loses the first one loses too, as on Neoverse cores. Instructions, prefetching, address
// translation and what is written back are left out.
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 64 };

typedef struct Level {
    uint64_t sets;  // a power of two
    uint64_t ways;
    uint64_t* lines;  // of each set its lines' numbers, the one used last first; 0 is an empty place
} Level;

typedef struct Caches {
    Level first;
    Level second;
} Caches;

// Lines that were brought in.
typedef struct Fills {
    uint64_t first;
    uint64_t second;
} Fills;

static void make_level(Level* level, uint64_t bytes, uint64_t ways) {
    level->ways = ways;
    level->sets = bytes / LINE_BYTES / ways;
    level->lines = calloc(level->sets * ways, sizeof *level->lines);
    if (!level->lines) abort();
}

static void make_caches(Caches* caches, const uint64_t bytes[2], const uint64_t ways[2]) {
    make_level(&caches->first, bytes[0], ways[0]);
    make_level(&caches->second, bytes[1], ways[1]);
}

static void empty_level(Level* level) { memset(level->lines, 0, level->sets * level->ways * sizeof *level->lines); }

static void empty_caches(Caches* caches) {
    empty_level(&caches->first);
    empty_level(&caches->second);
}

static uint64_t* set_of(const Level* level, uint64_t line) {
    return level->lines + (line & (level->sets - 1)) * level->ways;
}

// Makes a line the one used last; true if it was there. Else it takes the place of the line `lost`, or of none: 0.
static bool use_line(const Level* level, uint64_t line, uint64_t* lost) {
    uint64_t* set = set_of(level, line);
    uint64_t way = 0;
    while (way < level->ways - 1 && set[way] != line) way++;
    const bool found = set[way] == line;
    if (!found) *lost = set[way];
    memmove(set + 1, set, way * sizeof *set);
    set[0] = line;
    return found;
}

static void drop_line(const Level* level, uint64_t line) {
    uint64_t* set = set_of(level, line);
    for (uint64_t way = 0; way < level->ways; way++) {
        if (set[way] != line) continue;
        memmove(set + way, set + way + 1, (level->ways - 1 - way) * sizeof *set);
        set[level->ways - 1] = 0;
    }
}

// Loads or stores some bytes, at least one.
static void access_bytes(const Caches* caches, uint64_t address, uint64_t bytes, Fills* fills) {
    const uint64_t last = (address + bytes - 1) / LINE_BYTES;
    for (uint64_t line = address / LINE_BYTES; line <= last; line++) {
        uint64_t lost = 0;
        if (use_line(&caches->first, line, &lost)) continue;
        fills->first++;
        lost = 0;
        if (use_line(&caches->second, line, &lost)) continue;
        fills->second++;
        if (lost) drop_line(&caches->first, lost);
    }
}
