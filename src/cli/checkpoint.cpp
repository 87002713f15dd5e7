// The safetensors format: an eight-byte length, a JSON header of that length, then the data.
#include "cli/checkpoint.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "config/json.hpp"
#include "flexact/error.hpp"

namespace flexact::cli {

namespace {

namespace json = config::json;
namespace fs = std::filesystem;

// More than any activation's parameters: a vector longer than this is a weight, named by mistake.
constexpr std::uint64_t kMaxElements = 1 << 20;
constexpr std::uint64_t kMaxHeader = 100u << 20;  // the format allows no more

[[noreturn]] void damaged(const fs::path& file, const std::string& what) {
  throw Error(ErrorCode::IoError, what, file.string(), "a safetensors file");
}

std::uint64_t little_endian(const char* bytes, int count) {
  std::uint64_t value = 0;
  for (int i = count - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

double half_to_double(std::uint64_t bits) {
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  const int exponent = static_cast<int>(bits >> 10 & 0x1f);
  const double fraction = static_cast<double>(bits & 0x3ff) / 1024;
  if (exponent == 31) return fraction == 0 ? sign * HUGE_VAL : std::nan("");
  if (exponent == 0) return sign * std::ldexp(fraction, -14);
  return sign * std::ldexp(1 + fraction, exponent - 15);
}

struct Type {
  const char* name;
  int bytes;
  double (*read)(std::uint64_t bits);
};

constexpr Type kTypes[] = {
    {"F64", 8, [](std::uint64_t b) { return std::bit_cast<double>(b); }},
    {"F32", 4,
     [](std::uint64_t b) { return double{std::bit_cast<float>(static_cast<std::uint32_t>(b))}; }},
    {"BF16", 2,
     [](std::uint64_t b) {
       return double{std::bit_cast<float>(static_cast<std::uint32_t>(b << 16))};
     }},
    {"F16", 2, half_to_double},
};

std::string read_bytes(std::ifstream& stream, std::uint64_t at, std::uint64_t count,
                       const fs::path& file) {
  std::string bytes(count, '\0');
  stream.seekg(static_cast<std::streamoff>(at));
  stream.read(bytes.data(), static_cast<std::streamsize>(count));
  if (!stream) damaged(file, "the file ends early");
  return bytes;
}

std::optional<std::uint64_t> natural(const json::Value& value) {
  const json::Number* n = value.number();
  if (n == nullptr || !n->integral || !n->fits || n->integer < 0) return std::nullopt;
  return static_cast<std::uint64_t>(n->integer);
}

// Where a tensor's data lies, counted from the end of the header.
struct Extent {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

std::optional<Extent> extent_of(const json::Value& entry) {
  const json::Value* offsets = entry.find("data_offsets");
  const json::Array* pair = offsets ? offsets->array() : nullptr;
  if (pair == nullptr || pair->size() != 2) return std::nullopt;
  const auto begin = natural((*pair)[0]);
  const auto end = natural((*pair)[1]);
  if (!begin || !end || *end < *begin) return std::nullopt;
  return Extent{*begin, *end};
}

// The number of elements, nothing where the shape is malformed. Stops beyond kMaxElements.
std::optional<std::uint64_t> count_of(const json::Array& shape) {
  std::uint64_t count = 1;
  for (const json::Value& extent : shape) {
    const auto n = natural(extent);
    if (!n) return std::nullopt;
    count = count > kMaxElements ? count : count * std::min(*n, kMaxElements + 1);
  }
  return count;
}

// One file, its header read and checked as a whole: every tensor lies inside the file, and no two
// share bytes.
class File {
 public:
  explicit File(fs::path path) : path_(std::move(path)), stream_(path_, std::ios::binary) {
    std::error_code failure;
    const std::uintmax_t size = fs::file_size(path_, failure);
    if (!stream_ || failure) damaged(path_, "cannot be read");
    const std::string length = read_bytes(stream_, 0, 8, path_);
    const std::uint64_t header_size = little_endian(length.data(), 8);
    if (header_size > kMaxHeader || header_size > size - 8)
      damaged(path_, "the header is too long");
    start_ = 8 + header_size;
    try {
      header_ = json::parse(read_bytes(stream_, 8, header_size, path_), "header").root;
    } catch (const Error& error) {
      damaged(path_, error.what());
    }
    check_extents(size - start_);
    for (const auto& [name, entry] : *header_.object()) index_.emplace(name, &entry);
  }

  // The values of tensor `name`; nothing where the file has no such tensor.
  std::optional<std::vector<double>> read(const std::string& name) {
    const auto found = index_.find(name);
    if (found == index_.end() || name == kMetadata) return std::nullopt;
    const json::Value* dtype = found->second->find("dtype");
    const json::Value* shape = found->second->find("shape");
    if (!dtype || !dtype->string() || !shape || !shape->array()) malformed(name);
    const auto count = count_of(*shape->array());
    if (!count) malformed(name);
    if (shape->array()->size() > 1 && *count != 1) {
      throw Error(ErrorCode::ConfigError, "tensor '" + name + "' is not a scalar or a vector",
                  path_.string());
    }
    for (const Type& type : kTypes) {
      if (*dtype->string() == type.name) return values(name, type, *count, *found->second);
    }
    throw Error(ErrorCode::ConfigError, "tensor '" + name + "' has type " + *dtype->string(),
                path_.string(), "F64, F32, F16 or BF16");
  }

 private:
  static constexpr const char* kMetadata = "__metadata__";

  [[noreturn]] void malformed(const std::string& name) const {
    damaged(path_, "the entry of '" + name + "' is malformed");
  }

  void check_extents(std::uint64_t data_size) const {
    std::vector<Extent> extents;
    for (const auto& [name, entry] : *header_.object()) {
      if (name == kMetadata) continue;
      const auto extent = extent_of(entry);
      if (!extent) malformed(name);
      if (extent->end > data_size) damaged(path_, "'" + name + "' lies outside the file");
      extents.push_back(*extent);
    }
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    for (std::size_t i = 1; i < extents.size(); ++i) {
      if (extents[i].begin < extents[i - 1].end) damaged(path_, "two tensors share bytes");
    }
  }

  std::vector<double> values(const std::string& name, const Type& type, std::uint64_t count,
                             const json::Value& entry) {
    const auto width = static_cast<std::uint64_t>(type.bytes);
    const Extent extent = *extent_of(entry);
    if (count > kMaxElements || extent.end - extent.begin != count * width)
      damaged(path_, "'" + name + "' has a wrong size");
    const std::string data = read_bytes(stream_, start_ + extent.begin, count * width, path_);
    std::vector<double> result;
    for (std::uint64_t i = 0; i < count; ++i)
      result.push_back(type.read(little_endian(data.data() + i * width, type.bytes)));
    return result;
  }

  fs::path path_;
  std::ifstream stream_;
  std::uint64_t start_ = 0;
  json::Value header_;
  std::unordered_map<std::string_view, const json::Value*> index_;
};

std::vector<fs::path> safetensors_files(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    // No pipe or device: reading one could wait for ever.
    if (entry.path().extension() == ".safetensors" && entry.is_regular_file(ignored))
      files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

TensorReader checkpoint_reader(const fs::path& path) {
  const std::vector<fs::path> paths = safetensors_files(path);
  if (paths.empty()) return nullptr;
  // Files are opened when a tensor is first looked for in them; each header is read once.
  auto files = std::make_shared<std::vector<std::unique_ptr<File>>>(paths.size());
  return [paths, files](const std::string& name) {
    for (std::size_t i = 0; i < paths.size(); ++i) {
      auto& file = (*files)[i];
      if (!file) file = std::make_unique<File>(paths[i]);
      if (auto values = file->read(name)) return *values;
    }
    throw Error(ErrorCode::ConfigError, "the checkpoint has no tensor '" + name + "'",
                paths.front().parent_path().string());
  };
}

}  // namespace flexact::cli
