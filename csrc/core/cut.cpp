#include "core/cut.h"

namespace ao_arm {
namespace {

// Of a tile, 4 bytes each: half of a Neoverse core's first-level cache.
constexpr int64_t kTileSums = 8 * 1024;

// Estimates, not measured: beginning and ending a region, and what each thread adds to that. They only have to be of
// the right size, as work that is near the threshold takes about as long either way.
constexpr double kRegionCycles = 3000;
constexpr double kThreadCycles = 200;
// Of the second of two regions that follow each other at once: its threads are awake.
constexpr double kAwakeRegionCycles = 1500;
constexpr double kAwakeThreadCycles = 50;

double quickest_share(double cycles, int64_t pieces, int64_t threads) {
    return cycles * static_cast<double>(divide_up(pieces, std::min(threads, pieces))) / static_cast<double>(pieces);
}

}  // namespace

TileSize tile_size(int64_t m, int64_t n, int64_t row_step, int64_t column_step, int64_t most_rows) {
    const int64_t rows = std::min(round_up(m, row_step), most_rows);
    int64_t steps = std::max<int64_t>(1, kTileSums / (rows * column_step));
    if (steps > 4) steps -= steps % 4;  // which micro-kernels for few rows take together, and whole vectors of outputs
    return {rows, std::min(round_up(n, column_step), steps * column_step)};
}

double region_cycles(int64_t threads) { return kRegionCycles + kThreadCycles * static_cast<double>(threads); }

Team choose_team(const Work& work, int64_t threads) {
    if (threads <= 1) return {1, 1};
    const int64_t quantize = std::min(threads, work.quantize_pieces);
    const int64_t multiply = std::min(threads, work.multiply_pieces);
    const double alone = work.quantize + work.multiply;
    const double region = region_cycles(threads);
    const double one_region = work.quantize + quickest_share(work.multiply, work.multiply_pieces, threads) + region;
    const double second = kAwakeRegionCycles + kAwakeThreadCycles * static_cast<double>(threads);
    const double saved = work.quantize - quickest_share(work.quantize, work.quantize_pieces, threads) - second;
    const double both = saved > 0 ? one_region - saved : one_region;
    if (alone <= both) return {1, 1};
    return {saved > 0 ? quantize : 1, multiply};
}

}  // namespace ao_arm
