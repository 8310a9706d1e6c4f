#include "layer/linear.h"

#include <algorithm>
#include <atomic>

#include "core/scratch.h"
#include "layer/activations.h"
#include "layer/epilogue.h"

namespace ao_arm {
namespace {

// Of each thread, in a stretch.
constexpr int64_t kStretchRows = 64;

int64_t stretch_rows(int64_t m, int64_t threads) { return std::min(m, kStretchRows * std::max<int64_t>(4, threads)); }

}  // namespace

// The scratch memory's parts, each 64-byte aligned. With no base, only their total size is of use.
struct LinearCall::Scratch {
    RowRange* ranges;
    Tokens tokens;
    int8_t* lhs;
    uint8_t* threads;
    int64_t thread_bytes;  // of each: what a tile needs, and earlier the rows of a lhs block
    int64_t total;

    // What a thread needs for a tile.
    struct Tile {
        void* sums;
        uint8_t* kernel;
        Epilogue::TileColumns columns;

        Tile(const Linear& layer, const TileSize& size, ScratchParts parts)
            : sums(parts.take<int32_t>(kMostRows * size.columns)),
              kernel(parts.take<uint8_t>(kernel_bytes(layer))),
              columns(layer, size.columns, &parts),
              total(parts.total()) {}

        int64_t total;
    };

    Scratch(const LinearCall& call, uint8_t* base) {
        const Linear& layer = call.layer_;
        ScratchParts parts(base);
        const bool ranged = layer.activation_scale == ActivationScale::kPerTensor;
        ranges = parts.take<RowRange>(ranged ? layer.m : 0);
        tokens.scale = parts.take<float>(call.stretch_rows_);
        tokens.zero_point = parts.take<int32_t>(call.stretch_rows_);
        // A call may begin with the last block.
        const Kernel& kernel = *layer.weight.kernel;
        const int64_t before = (call.stretch_rows_ - 1) / kernel.row_step;
        lhs = parts.take<int8_t>((before + divide_up(kernel.rows_read(1), kernel.row_step)) * layer.weight.lhs_bytes);
        thread_bytes =
            round_up(std::max(Tile(layer, call.tile_, ScratchParts(nullptr)).total, Activations::own_bytes(layer)), 64);
        threads = parts.take<uint8_t>(std::max(call.team_.quantize, call.team_.multiply) * thread_bytes);
        total = parts.total();
    }

    uint8_t* thread(int64_t number) const { return threads + number * thread_bytes; }

    static int64_t kernel_bytes(const Linear& layer) {
        const PackedWeight& weight = layer.weight;
        const auto bytes = weight.kernel->scratch_bytes;
        if (bytes == nullptr) return 0;
        // The last block is narrower, but may be served by a micro-kernel that wants more.
        return std::max(bytes(weight.problem, weight.columns(0).count),
                        bytes(weight.problem, weight.columns(weight.blocks() - 1).count));
    }
};

Team best_team(const Linear& layer, int64_t threads) {
    if (threads <= 1) return {1, 1};
    const Kernel& kernel = *layer.weight.kernel;
    const Problem& problem = layer.weight.problem;
    const int64_t rows = stretch_rows(layer.m, threads);
    const Cut cut(rows, problem.n, kernel.row_step, kernel.column_step, threads);
    return choose_team({Activations::cost(layer, rows), kernel.cost(problem, rows, cpu_features()),
                        divide_up(rows, kernel.lhs_step), cut.units()},
                       threads);
}

LinearCall::LinearCall(const Linear& layer, const Parallel& parallel, const Team& team)
    : layer_(layer),
      parallel_(parallel),
      team_(team),
      stretch_rows_(stretch_rows(layer.m, parallel.threads())),
      tile_(tile_size(stretch_rows_, layer.weight.problem.n, layer.weight.kernel->row_step,
                      layer.weight.kernel->column_step, layer.weight.kernel->most_rows)) {}

int64_t LinearCall::scratch_bytes() const { return Scratch(*this, nullptr).total; }

bool LinearCall::run(uint8_t* base) const {
    const Kernel& kernel = *layer_.weight.kernel;
    const Scratch scratch(*this, base);
    const Activations activations(layer_, scratch.ranges, parallel_, team_.quantize);
    const Epilogue epilogue(layer_, !activations.zero_points_are_zero());
    std::atomic<bool> succeeded{true};
    for (int64_t begin = 0; begin < layer_.m; begin += stretch_rows_) {
        const int64_t rows = std::min(stretch_rows_, layer_.m - begin);
        const int64_t steps = divide_up(rows, kernel.lhs_step);
        parallel_.run_strips(std::min(team_.quantize, steps), steps, [&](int64_t first, int64_t last, int64_t strip) {
            activations.arrange(begin, rows, first * kernel.lhs_step, std::min(rows, last * kernel.lhs_step),
                                scratch.thread(strip), scratch.tokens, scratch.lhs);
        });
        const Cut cut(rows, layer_.weight.problem.n, kernel.row_step, kernel.column_step, team_.multiply);
        parallel_.run(cut.shares(), [&](int64_t share) {
            if (!multiply_share(scratch, cut, share, begin, epilogue))
                succeeded.store(false, std::memory_order_relaxed);
        });
    }
    return succeeded.load();
}

// A thread's share of a stretch, tile by tile: columns of the weight stay near while the rows pass by.
bool LinearCall::multiply_share(const Scratch& scratch, const Cut& cut, int64_t share, int64_t begin,
                                const Epilogue& epilogue) const {
    const PackedWeight& weight = layer_.weight;
    const Kernel& kernel = *weight.kernel;
    Scratch::Tile tile(layer_, tile_, ScratchParts(scratch.thread(share)));
    bool succeeded = true;
    cut.each_part(share, [&](const Rectangle& part) {
        for (int64_t column = part.column; column < part.column + part.columns; column += tile_.columns) {
            const int64_t columns = std::min(tile_.columns, part.column + part.columns - column);
            epilogue.begin(column, columns, &tile.columns);
            for (int64_t row = part.row; row < part.row + part.rows; row += tile_.rows) {
                const int64_t rows = std::min(tile_.rows, part.row + part.rows - row);
                succeeded &= kernel.multiply(
                    {&weight.problem, scratch.lhs + row / kernel.row_step * weight.lhs_bytes, layer_.multiplies_uint8(),
                     rows, weight.base + weight.block_offset(column / kernel.column_step),
                     static_cast<const int32_t*>(weight.sums(column)), columns, tile.sums, tile_.columns, tile.kernel});
                epilogue.finish(tile.columns, begin + row, rows, tile.sums, tile_.columns,
                                {scratch.tokens.scale + row, scratch.tokens.zero_point + row});
            }
        }
    });
    return succeeded;
}

}  // namespace ao_arm
