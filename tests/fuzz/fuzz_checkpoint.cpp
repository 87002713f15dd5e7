// safetensors files as arbitrary bytes: the value of a tensor is read from inside its file, or the
// file is refused.
//
// The input is the file; it is asked for two tensors, one of them by the header's first key.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "cli/checkpoint.hpp"
#include "fuzz.hpp"

namespace {

namespace fs = std::filesystem;
using namespace flexact;

// One file in memory where the machine has such a file system; removed with the process.
class Folder {
 public:
  Folder() {
    const fs::path base = fs::is_directory("/dev/shm") ? "/dev/shm" : fs::temp_directory_path();
    path_ = base / ("flexact-fuzz-" + std::to_string(getpid()));
    fs::create_directory(path_);
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void read(const TensorReader& reader, const std::string& name, std::size_t size) {
  try {
    const std::vector<double> values = reader(name);
    fuzz::check(values.size() <= size, "more values than bytes");
  } catch (const Error& error) {
    const bool absent = error.code() == ErrorCode::ConfigError;
    fuzz::check_error(error, absent ? ErrorCode::ConfigError : ErrorCode::IoError);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folder folder;
  {
    std::ofstream file(folder.path() / "model.safetensors", std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  }
  const TensorReader reader = cli::checkpoint_reader(folder.path());
  fuzz::check(static_cast<bool>(reader), "the file is not found");
  read(reader, "beta", size);
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t begin = text.find('"');
  const std::size_t end = text.find('"', begin + 1);
  if (end != std::string_view::npos)
    read(reader, std::string(text.substr(begin + 1, end - begin - 1)), size);
  return 0;
}
