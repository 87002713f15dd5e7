// The link cache on disk under everything that may happen to it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>
#include <vector>

#include "activation/digest.hpp"
#include "cuda/jit/disk_cache.hpp"

namespace {

namespace fs = std::filesystem;
using flexact::activation::sha256_hex;
using flexact::cuda::DiskCache;
using testing::HasSubstr;
using testing::IsEmpty;

std::string payload_of(std::size_t size) {
  std::string text(size, '\0');
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>((i * 131) >> 3);
  return text;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// Runs `body` in a process of its own; its return value is the exit status.
int in_child(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

class DiskCacheTest : public testing::Test {
 protected:
  DiskCacheTest() {
    std::string pattern = (fs::temp_directory_path() / "flexact-cache-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
    cache_ = DiskCache(root_ + "/cache");
  }
  ~DiskCacheTest() override { fs::remove_all(root_); }

  std::optional<std::string> load() { return cache_.load(key_, note_); }
  bool store(const std::string& payload) { return cache_.store(key_, payload, note_); }
  int entries() const {
    int count = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(cache_.folder())) ++count;
    return count;
  }

  std::string root_;
  DiskCache cache_{""};
  const std::string key_ = sha256_hex("key");
  std::string note_;
};

TEST_F(DiskCacheTest, gives_back_what_was_stored) {
  EXPECT_EQ(load(), std::nullopt);
  EXPECT_THAT(note_, IsEmpty());
  for (std::size_t size : {0, 1, 100000}) {
    ASSERT_TRUE(store(payload_of(size))) << note_;
    EXPECT_EQ(load(), payload_of(size));
  }
  EXPECT_EQ(entries(), 1);
  EXPECT_EQ(cache_.load(sha256_hex("other"), note_), std::nullopt);
}

TEST_F(DiskCacheTest, is_readable_by_its_owner_alone) {
  ASSERT_TRUE(store("x"));
  struct ::stat status {};
  ASSERT_EQ(::stat(cache_.folder().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700u);
  ASSERT_EQ(::stat(cache_.file(key_).c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

TEST_F(DiskCacheTest, a_changed_byte_anywhere_makes_an_entry_absent_and_it_is_rebuilt) {
  ASSERT_TRUE(store(payload_of(300)));
  const std::string whole = read_file(cache_.file(key_));
  for (std::size_t at = 0; at < whole.size(); at += 1) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
    write_file(cache_.file(key_), damaged);
    ASSERT_EQ(load(), std::nullopt) << at;
    ASSERT_THAT(note_, HasSubstr("damaged"));
  }
  ASSERT_TRUE(store(payload_of(300)));
  EXPECT_EQ(load(), payload_of(300));
}

TEST_F(DiskCacheTest, an_entry_cut_short_or_longer_is_absent) {
  ASSERT_TRUE(store(payload_of(300)));
  const std::string whole = read_file(cache_.file(key_));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    write_file(cache_.file(key_), whole.substr(0, size));
    ASSERT_EQ(load(), std::nullopt) << size;
  }
  write_file(cache_.file(key_), whole + "x");
  EXPECT_EQ(load(), std::nullopt);
}

TEST_F(DiskCacheTest, an_entry_of_another_key_is_absent_under_this_one) {
  ASSERT_TRUE(cache_.store(sha256_hex("other"), "payload", note_));
  fs::rename(cache_.file(sha256_hex("other")), cache_.file(key_));
  EXPECT_EQ(load(), std::nullopt);
}

TEST_F(DiskCacheTest, a_folder_that_others_may_write_is_not_used) {
  ASSERT_TRUE(store("x"));
  ASSERT_EQ(::chmod(cache_.folder().c_str(), 0777), 0);
  EXPECT_EQ(load(), std::nullopt);
  EXPECT_THAT(note_, HasSubstr("writable by others"));
  EXPECT_FALSE(store("y"));
  EXPECT_FALSE(cache_.usable(note_));
}

TEST_F(DiskCacheTest, an_entry_that_others_may_write_is_rebuilt) {
  ASSERT_TRUE(store("x"));
  ASSERT_EQ(::chmod(cache_.file(key_).c_str(), 0666), 0);
  EXPECT_EQ(load(), std::nullopt);
  EXPECT_THAT(note_, HasSubstr("writable by others"));
  ASSERT_TRUE(store("y"));
  EXPECT_EQ(load(), "y");
}

TEST_F(DiskCacheTest, what_belongs_to_another_user_is_not_used) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give files away";
  ASSERT_TRUE(store("x"));
  ASSERT_EQ(::chown(cache_.file(key_).c_str(), 65534, 65534), 0);
  EXPECT_EQ(load(), std::nullopt);
  EXPECT_THAT(note_, HasSubstr("another user"));
  ASSERT_TRUE(store("y"));
  EXPECT_EQ(load(), "y");
  ASSERT_EQ(::chown(cache_.folder().c_str(), 65534, 65534), 0);
  EXPECT_EQ(load(), std::nullopt);
  EXPECT_FALSE(store("z"));
}

TEST_F(DiskCacheTest, links_and_folders_in_place_of_an_entry_are_not_followed) {
  ASSERT_TRUE(store("x"));
  fs::rename(cache_.file(key_), root_ + "/elsewhere");
  fs::create_symlink(root_ + "/elsewhere", cache_.file(key_));
  EXPECT_EQ(load(), std::nullopt);
  ASSERT_TRUE(store("y"));
  EXPECT_EQ(load(), "y");
  EXPECT_THAT(read_file(root_ + "/elsewhere"), HasSubstr("x"));

  fs::remove(cache_.file(key_));
  fs::create_directory(cache_.file(key_));
  EXPECT_EQ(load(), std::nullopt);
  EXPECT_FALSE(store("z"));
  EXPECT_EQ(entries(), 1);
  fs::remove(cache_.file(key_));
  ASSERT_EQ(::mkfifo(cache_.file(key_).c_str(), 0600), 0);
  EXPECT_EQ(load(), std::nullopt);  // and does not wait for a writer
}

TEST_F(DiskCacheTest, a_folder_that_cannot_be_made_or_written_is_no_error) {
  write_file(root_ + "/file", "");
  const DiskCache impossible(root_ + "/file/cache");
  EXPECT_FALSE(impossible.store(key_, "x", note_));
  EXPECT_THAT(note_, HasSubstr("cannot be"));
  EXPECT_EQ(impossible.load(key_, note_), std::nullopt);

  ASSERT_TRUE(store("x"));
  ASSERT_EQ(::chmod(cache_.folder().c_str(), 0500), 0);
  // As another user where this one is root, whom no permission stops.
  const int status = in_child([&] {
    if (::geteuid() == 0) {
      if (::chown(root_.c_str(), 65534, 65534) != 0 ||
          ::chown(cache_.folder().c_str(), 65534, 65534) != 0 ||
          ::chown(cache_.file(key_).c_str(), 65534, 65534) != 0 || ::seteuid(65534) != 0)
        return 2;
    }
    return !store("y") && load() == "x" && !cache_.usable(note_) ? 0 : 1;
  });
  EXPECT_EQ(status, 0);
}

TEST_F(DiskCacheTest, a_full_disk_leaves_the_old_entry_and_no_rest) {
  ASSERT_TRUE(store("old"));
  // A limit on the size of files fails a write in the middle, as a full disk does.
  const int status = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const struct ::rlimit limit = {4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    return !store(payload_of(100000)) && !note_.empty() && load() == "old" && entries() == 1 ? 0
                                                                                             : 1;
  });
  EXPECT_EQ(status, 0);
}

TEST_F(DiskCacheTest, without_a_folder_nothing_is_kept) {
  const DiskCache none("");
  EXPECT_FALSE(none.store(key_, "x", note_));
  EXPECT_EQ(none.load(key_, note_), std::nullopt);
}

TEST_F(DiskCacheTest, eight_processes_write_and_read_one_key_at_once) {
  std::vector<pid_t> children;
  for (int process = 0; process < 8; ++process) {
    const pid_t child = ::fork();
    if (child == 0) {
      int wrong = 0;
      for (int round = 0; round < 25; ++round) {
        // All writers of a key have the same payload, as all links of a key have the same result.
        if (!cache_.store(key_, payload_of(50000), note_)) ++wrong;
        if (cache_.load(key_, note_) != payload_of(50000)) ++wrong;
      }
      ::_exit(wrong);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = -1;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  EXPECT_EQ(entries(), 1);
}

TEST_F(DiskCacheTest, a_writer_killed_at_any_point_leaves_all_or_nothing) {
  const std::string first = payload_of(200000);
  const std::string second = first + "!";
  ASSERT_TRUE(store(first));
  for (int round = 0; round < 40; ++round) {
    const pid_t child = ::fork();
    if (child == 0) {
      for (int i = 0;; ++i) cache_.store(key_, i % 2 == 0 ? second : first, note_);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500 + round * 137));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const auto found = load();
    ASSERT_TRUE(found == first || found == second) << note_;
  }
  // What the dead left is removed once it is old enough to belong to nobody.
  for (const auto& entry : fs::directory_iterator(cache_.folder())) {
    if (entry.path() != cache_.file(key_)) {
      const struct ::timespec old[2] = {{1, 0}, {1, 0}};
      ::utimensat(AT_FDCWD, entry.path().c_str(), old, 0);
    }
  }
  write_file(cache_.folder() + "/.writing-new", "");
  ASSERT_TRUE(store(first));
  EXPECT_EQ(entries(), 2);
}

TEST(DiskCacheFolder, follows_the_environment) {
  const auto folder_with = [](const char* cache, const char* xdg, const char* home) {
    std::string folder;
    const auto set = [](const char* name, const char* value) {
      value == nullptr ? ::unsetenv(name) : ::setenv(name, value, 1);
    };
    const char* old_home = std::getenv("HOME");
    const std::string kept = old_home == nullptr ? "" : old_home;
    set("FLEXACT_CACHE_DIR", cache);
    set("XDG_CACHE_HOME", xdg);
    set("HOME", home);
    folder = DiskCache::standard().folder();
    set("FLEXACT_CACHE_DIR", nullptr);
    set("XDG_CACHE_HOME", nullptr);
    set("HOME", old_home == nullptr ? nullptr : kept.c_str());
    return folder;
  };
  EXPECT_EQ(folder_with("/c", "/x", "/h"), "/c");
  EXPECT_EQ(folder_with(nullptr, "/x", "/h"), "/x/flexact");
  EXPECT_EQ(folder_with("", "", "/h"), "/h/.cache/flexact");
  EXPECT_EQ(folder_with("off", "/x", "/h"), "");
  EXPECT_EQ(folder_with(nullptr, nullptr, nullptr), "");
}

}  // namespace
