// How a layer is shared among threads: a pure function of its shape, the number of threads and the kernel's steps.
//
// The output (m, n) is a grid of units: column_step columns by row_step rows, the smallest piece that a kernel can
// multiply by itself. Units are numbered column step by column step, and each thread gets an equal stretch of the
// numbers. So columns are shared out first: each weight is read by one thread (where a stretch ends inside a column
// step, by two), and few rows still occupy every thread.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/problem.h"

namespace ao_arm {

// A part of the output.
struct Rectangle {
    int64_t row;
    int64_t rows;
    int64_t column;
    int64_t columns;
};

class Cut {
   public:
    Cut(int64_t m, int64_t n, int64_t row_step, int64_t column_step, int64_t threads)
        : m_(m),
          n_(n),
          row_step_(row_step),
          column_step_(column_step),
          row_units_(divide_up(m, row_step)),
          units_(row_units_ * divide_up(n, column_step)),
          shares_(std::min(threads, units_)) {}

    int64_t units() const { return units_; }

    // How many threads get something to do.
    int64_t shares() const { return shares_; }

    // Units before a share. The largest share is less than one unit above the mean.
    int64_t first_unit(int64_t share) const { return units_ / shares_ * share + units_ % shares_ * share / shares_; }

    // Calls body(rectangle) for the parts that make up a share: the end of a column step, whole ones, the beginning of
    // another.
    template <class Body>
    void each_part(int64_t share, const Body& body) const {
        int64_t unit = first_unit(share);
        const int64_t end = first_unit(share + 1);
        while (unit < end) {
            const int64_t row_unit = unit % row_units_, step = unit / row_units_;
            const bool whole = row_unit == 0 && end - unit >= row_units_;
            const int64_t steps = whole ? (end - unit) / row_units_ : 1;
            const int64_t row_units = whole ? row_units_ : std::min(row_units_ - row_unit, end - unit);
            const int64_t row = row_unit * row_step_, column = step * column_step_;
            body(Rectangle{row, std::min(row_units * row_step_, m_ - row), column,
                           std::min(steps * column_step_, n_ - column)});
            unit += steps * row_units;
        }
    }

   private:
    int64_t m_, n_, row_step_, column_step_, row_units_, units_, shares_;
};

// A part is multiplied in tiles of at most this many rows and columns, whose sums stay in the first-level cache until
// they are scaled.
struct TileSize {
    int64_t rows;
    int64_t columns;
};

// Of an (m, n) output: all rows up to most_rows, and as many column steps, at least one, as keep the sums small.
TileSize tile_size(int64_t m, int64_t n, int64_t row_step, int64_t column_step, int64_t most_rows);

// What a call has to do, in estimated cycles of one thread, and into how many pieces each step can be divided.
struct Work {
    double quantize;
    double multiply;
    int64_t quantize_pieces;
    int64_t multiply_pieces;
};

// On how many threads each of the two steps runs: the caller's own or, as torch opens its whole team for any number of
// tasks, as many as there are threads and pieces.
struct Team {
    int64_t quantize;
    int64_t multiply;
};

// The quickest way by the estimate: all on the caller's thread, or the multiplication or both on the team. The first
// use of the team costs region_cycles, a second one at once after it less.
Team choose_team(const Work& work, int64_t threads);

// Estimated cycles until all threads of a team have begun and all have come back: more, the more there are.
double region_cycles(int64_t threads);

}  // namespace ao_arm
