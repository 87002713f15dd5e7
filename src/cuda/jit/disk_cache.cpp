// Files through descriptors, relative to a folder that was checked: names cannot be exchanged in
// between.
#include "cuda/jit/disk_cache.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <utility>

#include "activation/digest.hpp"

namespace flexact::cuda {

namespace {

constexpr std::string_view kMagic = "flexact link cache 1\n";
constexpr std::size_t kDigest = 64;
constexpr std::time_t kAbandoned = 3600;  // seconds after which a temporary file has no owner left
constexpr off_t kLargest = 256 << 20;
constexpr std::string_view kTemporary = ".writing-";

// An open file, closed with its owner.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int get() const noexcept { return number_; }
  explicit operator bool() const noexcept { return number_ >= 0; }

 private:
  int number_;
};

std::string reason(const char* doing) {
  return std::string(doing) + ": " + std::strerror(errno);
}

// Ours, and nobody else may write it.
bool is_private(const struct ::stat& status, std::string& note) {
  if (status.st_uid != ::geteuid()) {
    note = "belongs to another user";
    return false;
  }
  if ((status.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    note = "is writable by others";
    return false;
  }
  return true;
}

Descriptor open_folder(const std::string& folder, std::string& note) {
  Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!descriptor) {
    note = errno == ENOENT ? std::string() : reason("the cache folder cannot be opened");
    return descriptor;
  }
  struct ::stat status {};
  if (::fstat(descriptor.get(), &status) != 0 || !is_private(status, note)) {
    note = "the cache folder " + folder + " " + note + " and is not used";
    return Descriptor(-1);
  }
  return descriptor;
}

// Makes the folder and those above it, private.
bool make_folder(const std::string& folder, std::string& note) {
  std::error_code error;
  const std::filesystem::path above = std::filesystem::path(folder).parent_path();
  if (!above.empty()) std::filesystem::create_directories(above, error);
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    note = reason("the cache folder cannot be made");
    return false;
  }
  return true;
}

bool read_all(int file, std::string& data) {
  std::size_t done = 0;
  while (done < data.size()) {
    const ssize_t count = ::read(file, data.data() + done, data.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<std::size_t>(count);
  }
  return true;
}

bool write_all(int file, std::string_view data) {
  while (!data.empty()) {
    const ssize_t count = ::write(file, data.data(), data.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    data.remove_prefix(static_cast<std::size_t>(count));
  }
  return true;
}

// MAGIC, digest of all that follows, key, payload.
std::string wrap(const std::string& key, std::string_view payload) {
  std::string body = key + "\n";
  body += payload;
  return std::string(kMagic) + activation::sha256_hex(body) + "\n" + body;
}

std::optional<std::string> unwrap(const std::string& key, const std::string& data) {
  const std::size_t head = kMagic.size() + kDigest + 1;
  const std::size_t before = head + key.size() + 1;
  if (data.size() < before || data.compare(0, kMagic.size(), kMagic) != 0 ||
      data[head - 1] != '\n') {
    return std::nullopt;
  }
  const std::string_view body = std::string_view(data).substr(head);
  if (body.substr(0, key.size() + 1) != key + "\n") return std::nullopt;
  if (data.compare(kMagic.size(), kDigest, activation::sha256_hex(body)) != 0) return std::nullopt;
  return data.substr(before);
}

// Removes what writers left that were killed.
void remove_abandoned(int folder) {
  const int copy = ::dup(folder);
  DIR* entries = copy < 0 ? nullptr : ::fdopendir(copy);
  if (entries == nullptr) {
    if (copy >= 0) ::close(copy);
    return;
  }
  ::rewinddir(entries);
  while (const dirent* entry = ::readdir(entries)) {
    if (std::string_view(entry->d_name).substr(0, kTemporary.size()) != kTemporary) continue;
    struct ::stat status {};
    if (::fstatat(folder, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
        std::time(nullptr) - status.st_mtime > kAbandoned) {
      ::unlinkat(folder, entry->d_name, 0);
    }
  }
  ::closedir(entries);
}

std::string temporary_name() {
  static std::atomic<unsigned> count{0};
  struct ::timespec now {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return std::string(kTemporary) + std::to_string(::getpid()) + "-" + std::to_string(now.tv_nsec) +
         "-" + std::to_string(count++);
}

}  // namespace

DiskCache DiskCache::standard() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  std::string folder = variable("FLEXACT_CACHE_DIR");
  if (folder == "off") return DiskCache("");
  if (folder.empty() && !variable("XDG_CACHE_HOME").empty()) {
    folder = variable("XDG_CACHE_HOME") + "/flexact";
  }
  if (folder.empty() && !variable("HOME").empty()) folder = variable("HOME") + "/.cache/flexact";
  return DiskCache(folder);
}

std::string DiskCache::file(const std::string& key) const {
  return folder_ + "/" + key + ".link";
}

std::optional<std::string> DiskCache::load(const std::string& key, std::string& note) const {
  note.clear();
  if (folder_.empty()) return std::nullopt;
  const Descriptor folder = open_folder(folder_, note);
  if (!folder) return std::nullopt;
  const Descriptor file(::openat(folder.get(), (key + ".link").c_str(),
                                 O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file) {
    if (errno != ENOENT) note = reason("a cache entry cannot be opened");
    return std::nullopt;
  }
  struct ::stat status {};
  if (::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_size > kLargest) {
    note = "a cache entry is no file of ours";
    return std::nullopt;
  }
  if (!is_private(status, note)) {
    note = "a cache entry " + note;
    return std::nullopt;
  }
  std::string data(static_cast<std::size_t>(status.st_size), '\0');
  if (!read_all(file.get(), data)) {
    note = reason("a cache entry cannot be read");
    return std::nullopt;
  }
  auto payload = unwrap(key, data);
  if (!payload) note = "a cache entry is damaged";
  return payload;
}

bool DiskCache::store(const std::string& key, std::string_view payload, std::string& note) const {
  if (!usable(note)) return false;
  const Descriptor folder = open_folder(folder_, note);
  if (!folder) return false;
  remove_abandoned(folder.get());
  const std::string temporary = temporary_name();
  const Descriptor file(::openat(folder.get(), temporary.c_str(),
                                 O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!file) {
    note = reason("a cache entry cannot be made");
    return false;
  }
  // Renaming before the data has reached the disk could leave an empty file after a power failure;
  // its checksum would tell, but the entry would be lost.
  if (!write_all(file.get(), wrap(key, payload)) || ::fsync(file.get()) != 0 ||
      ::renameat(folder.get(), temporary.c_str(), folder.get(), (key + ".link").c_str()) != 0) {
    note = reason("a cache entry cannot be written");
    ::unlinkat(folder.get(), temporary.c_str(), 0);
    return false;
  }
  return true;
}

int DiskCache::entries() const {
  int count = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, ignored)) {
    count += entry.path().extension() == ".link" ? 1 : 0;
  }
  return count;
}

bool DiskCache::usable(std::string& note) const {
  note.clear();
  if (folder_.empty()) {
    note = "there is no cache folder";
    return false;
  }
  if (!make_folder(folder_, note)) return false;
  const Descriptor folder = open_folder(folder_, note);
  if (!folder && note.empty()) note = "the cache folder cannot be opened";
  if (folder && ::faccessat(folder.get(), ".", W_OK, AT_EACCESS) != 0) {
    note = reason("the cache folder cannot be written");
    return false;
  }
  return static_cast<bool>(folder);
}

}  // namespace flexact::cuda
