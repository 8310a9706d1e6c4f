// Judges all inputs in the folders given, in the order of their names, and prints each one's digest: for CPUs and
// sanitizers that libFuzzer does not run with.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "fuzzed.h"

int main(int argc, char** argv) {
    std::vector<std::filesystem::path> paths;
    for (int i = 1; i < argc; ++i)
        for (const auto& entry : std::filesystem::directory_iterator(argv[i])) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // whole lines, as both streams may be one
    for (const std::filesystem::path& path : paths) {
        std::ifstream file(path, std::ios::binary);
        const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
        if (!file) ao_arm::give_up(path.string() + " cannot be read");
        std::fprintf(stderr, "%s\n", path.c_str());  // of which there is no more if it is fatal
        const uint64_t digest = ao_arm::judged(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
        std::printf("%016" PRIx64 " %s\n", digest, path.filename().c_str());
    }
    return paths.empty() ? 2 : 0;
}
