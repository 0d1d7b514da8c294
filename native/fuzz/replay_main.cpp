// Stands in for libFuzzer where the compiler has none: runs a target over the files of a corpus.
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
    size_t count = 0;
    for (int i = 1; i < argc; ++i) {
        for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[i])) {
            if (entry.is_regular_file()) {
                std::ifstream in(entry.path(), std::ios::binary);
                const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
                LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()),
                                       bytes.size());
                ++count;
            }
        }
    }
    std::printf("replayed %zu inputs\n", count);
    return count != 0 ? 0 : 1;  // an empty corpus is a mistake in the call
}
