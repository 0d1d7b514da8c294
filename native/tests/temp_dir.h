// A folder that lives as long as a test.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <string>

namespace kvstore {

class TempDir {
  public:
    // In shared memory when asked for, else where temporary files belong.
    explicit TempDir(bool shared_memory = false) {
        const std::string parent =
            shared_memory ? "/dev/shm" : std::filesystem::temp_directory_path().string();
        path_ = parent + "/kvstore-test-XXXXXX";
        if (mkdtemp(path_.data()) == nullptr) {
            path_.clear();
        }
    }
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    ~TempDir() {
        std::error_code ignored;
        if (!path_.empty()) {
            std::filesystem::remove_all(path_, ignored);
        }
    }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

}  // namespace kvstore
