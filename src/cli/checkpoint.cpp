// The safetensors format: an eight-byte length, a JSON header of that length, then the data.
#include "cli/checkpoint.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "flexact/error.hpp"

namespace flexact::cli {

namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

// More than any activation's parameters: a vector longer than this is a weight, named by mistake.
constexpr std::uint64_t kMaxElements = 1 << 20;
constexpr std::uint64_t kMaxHeader = 100u << 20;

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

// The values of tensor `name`; nothing where the file has no such tensor.
std::optional<std::vector<double>> read_tensor(const fs::path& file, const std::string& name) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) damaged(file, "cannot be read");
  const std::string length = read_bytes(stream, 0, 8, file);
  const std::uint64_t header_size = little_endian(length.data(), 8);
  if (header_size > kMaxHeader) damaged(file, "the header is too long");
  const Json header = Json::parse(read_bytes(stream, 8, header_size, file), nullptr, false);
  if (!header.is_object()) damaged(file, "the header is not JSON");
  const auto found = header.find(name);
  if (found == header.end()) return std::nullopt;
  try {
    const std::string type_name = found->at("dtype").get<std::string>();
    std::uint64_t count = 1;
    for (const Json& extent : found->at("shape")) {
      count *= extent.get<std::uint64_t>();
      if (count > kMaxElements) break;
    }
    if (found->at("shape").size() > 1 && count != 1) {
      throw Error(ErrorCode::ConfigError, "tensor '" + name + "' is not a scalar or a vector");
    }
    for (const Type& type : kTypes) {
      if (type_name != type.name) continue;
      const auto begin = found->at("data_offsets").at(0).get<std::uint64_t>();
      const auto end = found->at("data_offsets").at(1).get<std::uint64_t>();
      const std::uint64_t bytes = count * static_cast<std::uint64_t>(type.bytes);
      if (count > kMaxElements || end < begin || end - begin != bytes)
        damaged(file, "'" + name + "' has a wrong size");
      const std::string data = read_bytes(stream, 8 + header_size + begin, bytes, file);
      std::vector<double> values;
      for (std::uint64_t i = 0; i < count; ++i) {
        values.push_back(type.read(
            little_endian(data.data() + i * static_cast<std::uint64_t>(type.bytes), type.bytes)));
      }
      return values;
    }
    throw Error(ErrorCode::ConfigError, "tensor '" + name + "' has type " + type_name, {},
                "F64, F32, F16 or BF16");
  } catch (const Json::exception&) {
    damaged(file, "the entry of '" + name + "' is malformed");
  }
}

std::vector<fs::path> safetensors_files(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

TensorReader checkpoint_reader(const fs::path& path) {
  const std::vector<fs::path> files = safetensors_files(path);
  if (files.empty()) return nullptr;
  return [files](const std::string& name) {
    for (const fs::path& file : files) {
      if (auto values = read_tensor(file, name)) return *values;
    }
    throw Error(ErrorCode::ConfigError, "the checkpoint has no tensor '" + name + "'",
                files.front().parent_path().string());
  };
}

}  // namespace flexact::cli
