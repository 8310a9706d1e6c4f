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

// How many columns a weight takes of the outputs side by side: whole column steps, so that none has columns of two.
int64_t stepped_columns(const PackedWeight& weight) { return round_up(weight.problem.n, weight.kernel->column_step); }

// Shares out the outputs side by side, as those of one weight.
Cut cut_of(const Linears& layers, int64_t rows, int64_t threads) {
    const Kernel& kernel = *layers.first->weight.kernel;
    int64_t columns = 0;
    for (const Linear& layer : layers) columns += stepped_columns(layer.weight);
    return {rows, columns, kernel.row_step, kernel.column_step, threads};
}

// Of the widest layer's output.
TileSize tile_of(const Linears& layers, int64_t rows) {
    const Kernel& kernel = *layers.first->weight.kernel;
    int64_t n = 0;
    for (const Linear& layer : layers) n = std::max(n, layer.weight.problem.n);
    return tile_size(rows, n, kernel.row_step, kernel.column_step, kernel.most_rows);
}

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
        const Linear& layer = *call.layers_.first;
        ScratchParts parts(base);
        const bool ranged = layer.activation_scale == ActivationScale::kPerTensor;
        ranges = parts.take<RowRange>(ranged ? layer.m : 0);
        tokens.scale = parts.take<float>(call.stretch_rows_);
        tokens.zero_point = parts.take<int32_t>(call.stretch_rows_);
        // A call may begin with the last block.
        const Kernel& kernel = *layer.weight.kernel;
        const int64_t before = (call.stretch_rows_ - 1) / kernel.row_step;
        lhs = parts.take<int8_t>((before + divide_up(kernel.rows_read(1), kernel.row_step)) * layer.weight.lhs_bytes);
        thread_bytes = Activations::own_bytes(layer);
        for (const Linear& of : call.layers_)
            thread_bytes = std::max(thread_bytes, Tile(of, call.tile_, ScratchParts(nullptr)).total);
        thread_bytes = round_up(thread_bytes, 64);
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

bool share_activations(const Linear& a, const Linear& b) {
    return a.weight.kernel == b.weight.kernel && a.weight.problem.k == b.weight.problem.k &&
           a.weight.padded_k == b.weight.padded_k && a.weight.lhs_bytes == b.weight.lhs_bytes;
}

Team best_team(const Linears& layers, int64_t threads) {
    if (threads <= 1) return {1, 1};
    const Linear& first = *layers.first;
    const Kernel& kernel = *first.weight.kernel;
    const int64_t rows = stretch_rows(first.m, threads);
    double multiply = 0;
    for (const Linear& layer : layers) multiply += kernel.cost(layer.weight.problem, rows, cpu_features());
    return choose_team({Activations::cost(first, rows), multiply, divide_up(rows, kernel.lhs_step),
                        cut_of(layers, rows, threads).units()},
                       threads);
}

LinearCall::LinearCall(const Linears& layers, const Parallel& parallel, const Team& team)
    : layers_(layers),
      parallel_(parallel),
      team_(team),
      stretch_rows_(stretch_rows(layers.first->m, parallel.threads())),
      tile_(tile_of(layers, stretch_rows_)) {}

int64_t LinearCall::scratch_bytes() const { return Scratch(*this, nullptr).total; }

bool LinearCall::run(uint8_t* base) const {
    const Linear& first = *layers_.first;
    const int64_t lhs_step = first.weight.kernel->lhs_step;
    const Scratch scratch(*this, base);
    const Activations activations(first, scratch.ranges, parallel_, team_.quantize);
    const bool has_zero_points = !activations.zero_points_are_zero();
    std::atomic<bool> succeeded{true};
    for (int64_t begin = 0; begin < first.m; begin += stretch_rows_) {
        const int64_t rows = std::min(stretch_rows_, first.m - begin);
        const int64_t steps = divide_up(rows, lhs_step);
        parallel_.run_strips(std::min(team_.quantize, steps), steps, [&](int64_t from, int64_t to, int64_t strip) {
            activations.arrange(begin, rows, from * lhs_step, std::min(rows, to * lhs_step), scratch.thread(strip),
                                scratch.tokens, scratch.lhs);
        });
        const Cut cut = cut_of(layers_, rows, team_.multiply);
        parallel_.run(cut.shares(), [&](int64_t share) {
            if (!multiply_share(scratch, cut, share, begin, has_zero_points))
                succeeded.store(false, std::memory_order_relaxed);
        });
    }
    return succeeded.load();
}

// A thread's share of a stretch: what it has of each layer's output.
bool LinearCall::multiply_share(const Scratch& scratch, const Cut& cut, int64_t share, int64_t begin,
                                bool has_zero_points) const {
    bool succeeded = true;
    cut.each_part(share, [&](const Rectangle& part) {
        int64_t before = 0;  // columns of the layers before
        for (const Linear& layer : layers_) {
            const int64_t column = std::max<int64_t>(0, part.column - before);
            const int64_t end = std::min(layer.weight.problem.n, part.column + part.columns - before);
            if (column < end)
                succeeded &= multiply_part(layer, {part.row, part.rows, column, end - column}, scratch,
                                           scratch.thread(share), begin, has_zero_points);
            before += stepped_columns(layer.weight);
        }
    });
    return succeeded;
}

// A part of a layer's output, tile by tile: columns of the weight stay near while the rows pass by.
bool LinearCall::multiply_part(const Linear& layer, const Rectangle& part, const Scratch& scratch, uint8_t* own,
                               int64_t begin, bool has_zero_points) const {
    const PackedWeight& weight = layer.weight;
    const Kernel& kernel = *weight.kernel;
    const Epilogue epilogue(layer, has_zero_points);
    const bool scales = epilogue.leaves_scaling_to_kernel();
    Scratch::Tile tile(layer, tile_, ScratchParts(own));
    bool succeeded = true;
    for (int64_t column = part.column; column < part.column + part.columns;) {
        int64_t columns = std::min(tile_.columns, part.column + part.columns - column);
        if (scales && columns > kernel.column_step) columns -= columns % kernel.column_step;  // a tile of their own
        epilogue.begin(column, columns, &tile.columns);
        for (int64_t row = part.row; row < part.row + part.rows; row += tile_.rows) {
            const int64_t rows = std::min(tile_.rows, part.row + part.rows - row);
            const Tokens tokens = {scratch.tokens.scale + row, scratch.tokens.zero_point + row};
            const int64_t scaled = scales && columns % kernel.column_step == 0 ? rows - rows % kernel.row_step : 0;
            succeeded &= kernel.multiply(
                {&weight.problem, scratch.lhs + row / kernel.row_step * weight.lhs_bytes, layer.multiplies_uint8(),
                 rows, weight.base + weight.block_offset(column / kernel.column_step),
                 static_cast<const int32_t*>(weight.sums(column)), columns, tile.sums, tile_.columns, tile.kernel,
                 epilogue.scaled(tile.columns, begin + row, scaled, tokens)});
            if (scaled < rows)
                epilogue.finish(tile.columns, begin + row + scaled, rows - scaled,
                                static_cast<const int32_t*>(tile.sums) + scaled * tile_.columns, tile_.columns,
                                {tokens.scale + scaled, tokens.zero_point + scaled});
        }
        column += columns;
    }
    return succeeded;
}

}  // namespace ao_arm
