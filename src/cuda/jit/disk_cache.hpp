// Linked kernels on disk: one file for each key, safe against everything that may happen to it.
//
// A file is written under a temporary name and then renamed, so a reader sees all of it or nothing,
// whatever is killed and however many processes write at once. It carries its key and a checksum of
// everything; what does not fit is treated as absent and replaced. The folder and the files must
// belong to the user and be writable by nobody else, since what they hold is run. No failure here
// is an error: without a cache the link is done again.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace flexact::cuda {

class DiskCache {
 public:
  // Does nothing yet; the folder is made with the first store.
  explicit DiskCache(std::string folder) : folder_(std::move(folder)) {}
  // FLEXACT_CACHE_DIR, else XDG_CACHE_HOME/flexact, else HOME/.cache/flexact; "off" as the value of
  // FLEXACT_CACHE_DIR and a user without a home: no cache.
  static DiskCache standard();

  const std::string& folder() const noexcept { return folder_; }
  // The file of a key, which is a digest in hexadecimal digits.
  std::string file(const std::string& key) const;

  // `note` says why nothing was found, where that is worth a word.
  std::optional<std::string> load(const std::string& key, std::string& note) const;
  // False, with the reason in `note`, where it could not be stored.
  bool store(const std::string& key, std::string_view payload, std::string& note) const;
  // Whether entries can be kept here; makes the folder. The reason in `note` where not.
  bool usable(std::string& note) const;
  // How many links are kept.
  int entries() const;

 private:
  std::string folder_;
};

}  // namespace flexact::cuda
