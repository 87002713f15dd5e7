// Error composes its text from the parts that are there.
#include <gtest/gtest.h>

#include "flexact/error.hpp"
#include "flexact/version.hpp"

namespace {

using flexact::Error;
using flexact::ErrorCode;

TEST(Error, composes_where_message_and_hint) {
  const Error error(ErrorCode::ConfigError, "NaN is not allowed", "/activation_params/beta",
                    "any finite number");
  EXPECT_STREQ(error.what(), "/activation_params/beta: NaN is not allowed (any finite number)");
  EXPECT_EQ(to_string(error.code()), "ConfigError");
}

TEST(Error, leaves_empty_parts_out) {
  EXPECT_STREQ(Error(ErrorCode::IoError, "cannot open").what(), "cannot open");
}

TEST(Version, matches_the_header) {
  EXPECT_STREQ(flexact::version(), FLEXACT_VERSION_STRING);
}

}  // namespace
