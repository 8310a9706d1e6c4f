// How layers are shared among threads: nothing twice, nothing left out, and no thread much more than its part.
#include "core/cut.h"

#include <array>

#include "checks.h"

namespace ao_arm {
namespace {

// Steps of kernels: rows and columns.
constexpr int64_t kSteps[][2] = {{8, 12}, {16, 8}, {8, 8}, {4, 4}, {16, 16}, {8, 384}};
constexpr int64_t kThreads[] = {1, 2, 3, 7, 16, 48, 64, 96, 200};

std::string name(int64_t m, int64_t n, const int64_t (&steps)[2], int64_t threads) {
    return "cut of " + std::to_string(m) + " x " + std::to_string(n) + " by " + std::to_string(steps[0]) + " x " +
           std::to_string(steps[1]) + " for " + std::to_string(threads) + " threads";
}

void test_shares(int64_t m, int64_t n, const int64_t (&steps)[2], int64_t threads) {
    const Cut cut(m, n, steps[0], steps[1], threads);
    const int64_t row_units = divide_up(m, steps[0]), units = row_units * divide_up(n, steps[1]);
    bool ok = cut.units() == units && cut.shares() == std::min(threads, units);
    int64_t next = 0;  // the unit that has to come next: so none comes twice, and none is left out
    for (int64_t share = 0; share < cut.shares(); ++share) {
        const int64_t before = next;
        int parts = 0;
        cut.each_part(share, [&](const Rectangle& part) {
            ++parts;
            ok &= part.row % steps[0] == 0 && part.column % steps[1] == 0 && part.rows > 0 && part.columns > 0;
            ok &= part.row + part.rows <= m && part.column + part.columns <= n;
            ok &= (part.row + part.rows) % steps[0] == 0 || part.row + part.rows == m;
            ok &= (part.column + part.columns) % steps[1] == 0 || part.column + part.columns == n;
            const int64_t column_units = divide_up(part.columns, steps[1]);
            ok &= column_units == 1 || part.rows == m;  // several column steps have all rows
            ok &= part.column / steps[1] * row_units + part.row / steps[0] == next;
            next += column_units * divide_up(part.rows, steps[0]);
        });
        const int64_t of_share = next - before;
        ok &= of_share >= 1 && parts <= 3;
        // Less than one unit above the mean: at most a tenth of it from ten units a thread on.
        ok &= of_share * cut.shares() < units + cut.shares();
        if (units >= 10 * cut.shares()) ok &= of_share * cut.shares() * 10 <= units * 11;
    }
    check(ok && next == units, name(m, n, steps, threads));
}

// A layer as users have it, on Neon's steps: shares measured in products, with what is left over at the edges.
void test_products(int64_t m, int64_t n, int64_t threads) {
    const int64_t steps[2] = {8, 12};
    const Cut cut(m, n, steps[0], steps[1], threads);
    // Where each thread has four column steps and rows can be divided as well.
    if (divide_up(n, steps[1]) < 4 * threads || m < 24) return;
    int64_t largest = 0;
    for (int64_t share = 0; share < cut.shares(); ++share) {
        int64_t products = 0;
        cut.each_part(share, [&](const Rectangle& part) { products += part.rows * part.columns; });
        largest = std::max(largest, products);
    }
    check(largest * cut.shares() * 10 <= m * n * 11, name(m, n, steps, threads) + ": products");
}

void test_tiles() {
    for (const auto& steps : kSteps)
        for (const int64_t m : {1, 3, 8, 17, 64, 100, 600})
            for (const auto& [n, most_rows] :
                 {std::array<int64_t, 2>{1, 64}, {12, 64}, {100, 32}, {768, 64}, {4096, 32}}) {
                const TileSize tile = tile_size(m, n, steps[0], steps[1], most_rows);
                bool ok = tile.rows % steps[0] == 0 && tile.columns % steps[1] == 0 && tile.rows <= most_rows;
                ok &= tile.rows >= std::min(m, most_rows) && tile.columns >= steps[1];
                ok &= tile.columns == steps[1] || tile.rows * tile.columns <= 8192;
                ok &= tile.columns < n + steps[1];
                check(ok, "tile of " + name(m, n, steps, 1));
            }
}

void test_teams() {
    const auto same = [](const Team& team, int64_t quantize, int64_t multiply) {
        return team.quantize == quantize && team.multiply == multiply;
    };
    // Little to do is done by the caller. The larger the team, the more there has to be, but that two threads can save
    // no more than a half.
    check(same(choose_team({100, 1000, 4, 64}, 8), 1, 1), "team for little");
    int64_t least = 0;
    for (const int64_t threads : {4, 8, 16, 64, 200}) {
        int64_t enough = 1;
        while (choose_team({0, static_cast<double>(enough), 1, 1000}, threads).multiply == 1) enough += 64;
        check(enough > least, "team's threshold for " + std::to_string(threads) + " threads");
        check(static_cast<double>(enough) > region_cycles(threads), "a team costs more than it saves");
        least = enough;
    }
    // One region for few rows, two where quantizing is worth its own.
    check(same(choose_team({3e3, 4e4, 4, 64}, 16), 1, 16), "one region");
    check(same(choose_team({3e4, 4e5, 32, 512}, 16), 16, 16), "two regions");
    check(same(choose_team({3e4, 4e5, 32, 5}, 16), 16, 5), "no more tasks than pieces");
    check(same(choose_team({3e9, 4e9, 32, 512}, 1), 1, 1), "one thread");
}

}  // namespace

void test_cut() {
    for (const auto& steps : kSteps)
        for (const int64_t threads : kThreads) {
            for (int64_t m = 1; m <= 600; m += m < 70 ? 1 : 53)
                for (const int64_t n : {1, 11, 384, 768, 1000, 3072, 4096})
                    if (m < 70 || n < 1000) test_shares(m, n, steps, threads);
            for (const int64_t m : {600, 599, 512})
                for (const int64_t n : {768, 3072, 4096, 11008, 32000}) test_shares(m, n, steps, threads);
        }
    for (const int64_t threads : kThreads)
        for (int64_t m = 1; m <= 600; m += 7)
            for (const int64_t n : {768, 1024, 3072, 4096, 11008}) test_products(m, n, threads);
    test_tiles();
    test_teams();
}

}  // namespace ao_arm
